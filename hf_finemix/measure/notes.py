"""Sentences that go with a measured number wherever it stands: in the log, the report, the card."""

from collections.abc import Callable, Mapping
from typing import Any


def said_by_number(data: Mapping[str, Any], quote: Callable[[str], str] = str) -> str | None:
    """That the names of the classes in the data said nothing; `None` where there is nothing to say."""
    names = [quote(str(name)) for name in data.get("unknown_class_names") or []]
    return (
        f"Labels were read by number: the model does not know the data's names {', '.join(names)}." if names else None
    )


def said_unreadable(trigger: Mapping[str, Any], quote: Callable[[str], str] = str) -> str | None:
    """That samples are not in an attack success; `None` where all are."""
    count = int(trigger.get("unreadable") or 0)
    what = f"the trigger {quote(str(trigger['trigger']))}"
    return f"Samples not counted, as the model would not read {what} in them: {count}." if count else None
