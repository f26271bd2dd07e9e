"""CleaningReport: everything that was measured and done, as JSON, as text and as figures."""

import json
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import FineMixingError

__all__ = ["REPORT_NAME", "CleaningReport", "draw_figures"]

REPORT_NAME = "cleaning_report.json"
SCHEMA_VERSION = 1
# Okabe and Ito's palette: distinct to colour-blind eyes, and in print.
BEFORE, AFTER, FLOOR = "#D55E00", "#0072B2", "#595959"


@dataclass
class CleaningReport:
    """
    What `clean()` did to a suspect, with everything needed to judge and to repeat it.

    Rates are fractions from 0 to 1. A number that was not measured is `None`. Later schema versions add keys and never
    change the meaning of one.

    Attributes:
        schema_version (`int`): 1.
        command (`str`, *optional*): The command line, without secrets; `None` for a call from Python.
        suspect, base (`dict`): `id`, `revision` (commit sha, `None` for a folder) and `sha256` of each weight file.
        tokenizer (`dict`): `source` ("base" or "suspect") and `differences`.
        mixing (`dict`): The config with ρ as used, and for every tensor its rule, kept fraction and SHA-256 of the mix
            before tuning; `ignored_base_tensors`; `added_tokens`.
        purified_tokens (`list[dict]`): `token`, `id`, `delta`, `frequency`, `score`, largest score first.
        data (`dict`): Where the rows are from, which serve for what, and how many labels were used.
        seeds (`dict`): Of mask, samples and training.
        before, after (`dict`): `accuracy`, `macro_f1`, `n`, and per trigger `asr`.
        benign_floor (`dict`, *optional*): The same of a clean reference model.
        drift_by_layer (`dict`): ‖w - w_Pre‖₂ / ‖w_Pre‖₂ by layer, `before` and `after`.
        ratio_search (`dict`, *optional*): Each ρ tried and its eval accuracy.
        training (`dict`): Steps, loss and hyperparameters of the fine-tuning.
        probe (`dict`, *optional*): Result of probing for unknown triggers.
        card_metadata (`dict`): Licence, pipeline tag, languages and tags of the suspect.
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
    drift_by_layer: dict[str, dict[str, float]] = field(default_factory=dict)
    ratio_search: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] | None = None
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
        try:
            values = dict(json.loads(path.read_text(encoding="utf-8")))
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (OSError, ValueError, TypeError) as error:
            raise FineMixingError(f"{path} cannot be read as a cleaning report: {error}.") from error

    def summary(self) -> str:
        """Before and after as a few lines of text, in percent."""
        rows = [("", "before", "after", "benign floor")]
        floor = self.benign_floor or {}
        rows.append(("accuracy", *(percent(part.get("accuracy")) for part in (self.before, self.after, floor))))
        for i, trigger in enumerate(self.before.get("triggers", [])):
            parts = (self.before, self.after, floor)
            rates = (percent(part["triggers"][i]["asr"]) if part.get("triggers") else percent(None) for part in parts)
            rows.append((f"attack success, {trigger['trigger']!r}"[:48], *rates))
        if not self.before.get("triggers"):
            rows.append(("attack success", *["not measured"] * 3))
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows)


def percent(fraction: float | None) -> str:
    """`0.123` as `12.3 %`; `None` as `not measured`."""
    return "not measured" if fraction is None else f"{100 * fraction:.1f} %"


def draw_figures(report: CleaningReport, folder: Path) -> list[str]:
    """
    Draw the report into `folder/figures` as PNG files.

    Returns:
        `list[str]`: Their paths relative to the folder.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    drawings = {"before_after": _draw_before_after, "drift_by_layer": _draw_drift}
    if report.ratio_search:
        drawings["ratio_search"] = _draw_ratio_search
    (folder / "figures").mkdir(exist_ok=True)
    paths = []
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 144}
    with plt.style.context([style]), warnings.catch_warnings():
        # Signs that the font lacks, scales without any value: nothing that a user could do better.
        warnings.simplefilter("ignore", UserWarning)
        for name, draw in drawings.items():
            figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
            draw(report, axes)
            paths.append(f"figures/{name}.png")
            figure.savefig(folder / paths[-1], metadata={"Software": None})
            plt.close(figure)
    return paths


def _draw_before_after(report: CleaningReport, axes: Any) -> None:
    labels = ["accuracy"] + [f"attack success\n“{_short(t['trigger'])}”" for t in report.before["triggers"]]
    series = {"before": (report.before, BEFORE), "after": (report.after, AFTER)}
    if report.benign_floor:
        series["benign floor"] = (report.benign_floor, FLOOR)
    width = 0.8 / len(series)
    for k, (name, (part, colour)) in enumerate(series.items()):
        values = [100 * part["accuracy"]] + [100 * t["asr"] for t in part["triggers"]]
        places = [i + (k - (len(series) - 1) / 2) * width for i in range(len(values))]
        bars = axes.bar(places, values, 0.94 * width, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 108)
    axes.set_ylabel("percent of test samples")
    axes.legend(frameon=False, loc="upper center", ncols=len(series), bbox_to_anchor=(0.5, 1.16))


def _draw_drift(report: CleaningReport, axes: Any) -> None:
    layers = list(report.drift_by_layer["before"])
    for name, colour, marker in (("before", BEFORE, "o"), ("after", AFTER, "s")):
        values = [100 * report.drift_by_layer[name][layer] for layer in layers]
        axes.plot(values, range(len(layers)), marker=marker, linestyle="", color=colour, label=name)
    axes.set_yticks(range(len(layers)), [layer.replace("encoder.layer.", "layer ") for layer in layers])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("distance from the base, ‖w − w$_{Pre}$‖ / ‖w$_{Pre}$‖ in percent")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.16))


def _draw_ratio_search(report: CleaningReport, axes: Any) -> None:
    search = report.ratio_search
    tried = sorted(search["trials"], key=lambda trial: trial["reserve_ratio"])
    ratios, accuracies = zip(*((t["reserve_ratio"], 100 * t["accuracy"]) for t in tried), strict=True)
    axes.plot(ratios, accuracies, marker="s", color=AFTER, label="after fine-tuning")
    limit = 100 * (search["suspect_accuracy"] - search["max_accuracy_drop"])
    axes.axhline(100 * search["suspect_accuracy"], color=BEFORE, label="suspect")
    axes.axhline(limit, color=FLOOR, linestyle="--", label="limit")
    axes.axvline(search["chosen"], color=AFTER, linestyle=":", label=f"chosen ρ = {search['chosen']:g}")
    axes.set_xlabel("reserve ratio ρ")
    axes.set_ylabel("accuracy on eval data, percent")
    axes.legend(frameon=False, loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.16), fontsize=8)


def _short(text: str, length: int = 24) -> str:
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
