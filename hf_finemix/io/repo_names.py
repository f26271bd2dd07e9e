"""What the user calls a model: a folder, or `org/name` or `org/name@revision` on the Hub."""

import os
import re

from ..errors import FineMixingError

_REVISION = re.compile(r"[\w./-]{1,200}")


def is_repo_id(text: str) -> bool:
    """Whether it is `name` or `org/name` as the Hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return len(text) <= 200  # the name is bounded there, the organization is not


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The name and the revision of `org/name@revision`; any other name, as a folder that is there, is left as is."""
    repo, at, wanted = name.partition("@")
    if not at or not is_repo_id(repo) or not _REVISION.fullmatch(wanted) or os.path.exists(name):
        return name, revision
    if revision not in (None, wanted):
        raise FineMixingError(f"{name} and the revision {revision} beside it are two: give one of them.")
    return repo, wanted
