"""CleaningReport: everything that was measured and done, as JSON and as text."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import FineMixingError, printable
from ..io.safe_json import check_inside, read_json
from ..measure.notes import said_by_number, said_unreadable
from ..repo_contents import REPORT_NAME
from .schema import Data, EmbeddingDrift, Measured, Mixing, PurifiedToken, Search, Source, Tokenizer, Training

SCHEMA_VERSION = 1
_EMPTY: Any = dict  # a section of which nothing is known has no keys


@dataclass
class CleaningReport:
    """
    What `clean()` did to a suspect, with everything needed to judge and to repeat it.

    Rates are fractions from 0 to 1. A number that was not measured is `None`. Later schema versions add keys and never
    change the meaning of one. The keys of each section, and what they mean, stand in [`report.schema`].
    """

    schema_version: int = SCHEMA_VERSION
    command: str | None = None  # without secrets; None for a call from Python
    suspect: Source = field(default_factory=_EMPTY)
    base: Source = field(default_factory=_EMPTY)
    tokenizer: Tokenizer = field(default_factory=_EMPTY)
    mixing: Mixing = field(default_factory=_EMPTY)
    purified_tokens: list[PurifiedToken] = field(default_factory=list)
    data: Data = field(default_factory=_EMPTY)
    seeds: dict[str, int] = field(default_factory=dict)  # of mask, samples and training
    before: Measured = field(default_factory=_EMPTY)
    after: Measured = field(default_factory=_EMPTY)
    benign_floor: Measured | None = None  # the same of a clean reference model
    matched_floor: Measured | None = None  # the same at ρ = 0: base's body, suspect's head, same clean data
    # "before" and "after" → layer → ‖w - w_Pre‖₂ / ‖w_Pre‖₂; None where w_Pre is 0
    drift_by_layer: dict[str, dict[str, float | None]] = field(default_factory=dict)
    embedding_drift: EmbeddingDrift | None = None
    ratio_search: Search | None = None
    training: Training = field(default_factory=_EMPTY)
    probe: dict[str, Any] | None = None  # of probing for unknown triggers
    weights: dict[str, str] | None = None  # SHA-256 of each weight file of the cleaned model itself
    card_metadata: dict[str, Any] = field(default_factory=dict)  # license, pipeline tag, languages, tags
    figures: list[str] = field(default_factory=list)  # paths inside the folder
    timings_s: dict[str, float] = field(default_factory=dict)  # wall seconds by stage
    peak_memory_bytes: int | None = None  # largest resident size of the process
    versions: dict[str, str] = field(default_factory=dict)  # of Python and the libraries

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write `cleaning_report.json` into a folder."""
        (folder / REPORT_NAME).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "CleaningReport":
        """Read the report of a cleaned model. Keys of later versions are left out."""
        path = Path(folder) / REPORT_NAME
        check_inside(path, Path(folder))
        try:
            values = dict(read_json(path))
            for name, default in vars(cls()).items():
                if default is not None and not isinstance(values.get(name, default), type(default)):
                    raise TypeError(f"{name} is a {type(values[name]).__name__}")
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except FineMixingError:
            raise
        except (ValueError, TypeError) as error:
            raise FineMixingError(f"{path} cannot be read as a cleaning report: {error}.") from error

    def notes(self, quote: Callable[[str], str] = str) -> list[str]:
        """What has to be known of the numbers. `quote` is applied to what strangers wrote."""
        notes = [said_by_number(self.data, quote)]
        notes += [said_unreadable(trigger, quote) for trigger in self.after.get("triggers") or []]
        return [note for note in notes if note]

    def summary(self) -> str:
        """Before and after as a few lines of text, in percent."""
        rows = [("", "before", "after", "benign floor")]
        floor = self.benign_floor or {}
        rows.append(("accuracy", *(percent(part.get("accuracy")) for part in (self.before, self.after, floor))))
        if "perplexity" in self.before:
            parts = (self.before, self.after, floor)
            values = (part.get("perplexity") for part in parts)
            rows.append(("perplexity", *("not measured" if v is None else f"{v:.2f}" for v in values)))
        for i, trigger in enumerate(self.before.get("triggers", [])):
            parts = (self.before, self.after, floor)
            rates = (percent(part["triggers"][i]["asr"]) if part.get("triggers") else percent(None) for part in parts)
            rows.append((f"attack success, {trigger['trigger']!r}"[:48], *rates))
        if not self.before.get("triggers"):
            rows.append(("attack success", *["not measured"] * 3))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
        return "\n".join([*lines, *map(printable, self.notes())])


def percent(fraction: float | None) -> str:
    """`0.123` as `12.3 %`; `None` as `not measured`."""
    return "not measured" if fraction is None else f"{100 * fraction:.1f} %"
