"""CleaningReport: everything that was measured and done, as JSON and as text."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import FineMixingError, printable
from ..io.checkpoint import check_inside, read_json
from ..measure.notes import said_by_number, said_unreadable
from ..repo_contents import REPORT_NAME

__all__ = ["CleaningReport", "percent"]

SCHEMA_VERSION = 1


@dataclass
class CleaningReport:
    """
    What `clean()` did to a suspect, with everything needed to judge and to repeat it.

    Rates are fractions from 0 to 1. A number that was not measured is `None`. Later schema versions add keys and never
    change the meaning of one.

    Attributes:
        schema_version (`int`): 1.
        command (`str`, *optional*): The command line, without secrets; `None` for a call from Python.
        suspect, base (`dict`): `id`, `revision` (commit sha, `None` for a folder) and `sha256` of each weight file;
            from the Hub also `security` (what its scan says, what was not taken, how pickles were read). Of the base
            `named_by` (who says that it is the base), `relation` (as the suspect's card or the Hub has it) and `fit`
            (how far the suspect's weights are from it).
        tokenizer (`dict`): `source` ("base" or "suspect") and `differences`.
        mixing (`dict`): The config with ρ as used, and for every tensor its rule, kept fraction and SHA-256 of the mix
            before tuning; `ignored_base_tensors`; `added_tokens`.
        purified_tokens (`list[dict]`): `token` (`None` for a row that the tokenizer has no token for), `id`, `delta`,
            `frequency`, `score`, largest score first.
        data (`dict`): Where the rows are from, which serve for what, how many labels were used, and `labels`: whether
            they were read "by name" or "by number" (then also `unknown_class_names`, if the data have others).
        seeds (`dict`): Of mask, samples and training.
        before, after (`dict`): `accuracy`, `macro_f1`, `n`, and per trigger `asr`, `n` and `unreadable` (samples that
            are not in it, as they are too long for the model to read the trigger); of a model that writes the accuracy
            is that of the tokens of the completions, and there is `perplexity`.
        benign_floor (`dict`, *optional*): The same of a clean reference model.
        matched_floor (`dict`, *optional*): The same at ρ = 0: base's body, suspect's head, same clean data.
        drift_by_layer (`dict`): ‖w - w_Pre‖₂ / ‖w_Pre‖₂ by layer, `before` and `after`; `None` where w_Pre is 0.
        embedding_drift (`dict`, *optional*): Of E-PUR, how many tokens there are by ‖δ_i‖₂ and f_i (see
            [`purification.TokenDrift.histogram`]), and `trigger_tokens`: `token`, `id`, `delta`, `frequency`, `score`,
            `rank` (1 has the largest score) and `purified` of each token of the measured triggers.
        ratio_search (`dict`, *optional*): How ρ was chosen: the attributes of [`ratio_search.RatioSearch`], and in
            each trial `triggers`: the attack success on test data, which is told and was never looked at in choosing.
        training (`dict`): Steps, loss and hyperparameters of the fine-tuning.
        probe (`dict`, *optional*): Result of probing for unknown triggers.
        weights (`dict`, *optional*): SHA-256 of each weight file of the cleaned model itself.
        card_metadata (`dict`): License, pipeline tag, languages and tags of the suspect.
        figures (`list[str]`): Paths inside the folder.
        timings_s (`dict[str, float]`): Wall seconds by stage.
        peak_memory_bytes (`int`): Largest resident size of the process.
        versions (`dict[str, str]`): Of Python and the libraries.
    """

    schema_version: int = SCHEMA_VERSION
    command: str | None = None
    suspect: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)
    purified_tokens: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    benign_floor: dict[str, Any] | None = None
    matched_floor: dict[str, Any] | None = None
    drift_by_layer: dict[str, dict[str, float | None]] = field(default_factory=dict)
    embedding_drift: dict[str, Any] | None = None
    ratio_search: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = None
    weights: dict[str, str] | None = None
    card_metadata: dict[str, Any] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

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
