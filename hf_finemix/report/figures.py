"""The figures of a cleaning report, all in one style: readable at the width of a card, and to color-blind eyes."""

import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .report import CleaningReport
from .schema import EmbeddingDrift, PurifiedToken, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's palette: distinct to color-blind eyes, and in print.
BEFORE, AFTER, FLOOR, PURIFIED, TRIGGER = "#D55E00", "#0072B2", "#595959", "#009E73", "#000000"
MATCHED = "#56B4E9"
WIDTH = 6.4  # inches, at 144 dots each
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 144,
    "savefig.dpi": 144,
    "legend.frameon": False,
}
MAX_LAYERS_NAMED = 30
MAX_TOKENS_NAMED = 25

TITLES = {
    "before_after": "Accuracy and attack success before and after",
    "ratio_search": "Accuracy and attack success against the reserve ratio",
    "embedding_drift": "Drift of each word embedding against the frequency of its token",
    "drift_by_layer": "Distance from the base by layer",
}


def draw_figures(report: CleaningReport, folder: Path) -> list[str]:
    """
    Draw the report into `folder/figures` as PNG files.

    Returns:
        `list[str]`: Their paths relative to the folder.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawings: dict[str, Callable[[Axes], None]] = {}
    if None not in (report.before.get("accuracy"), report.after.get("accuracy")):
        drawings["before_after"] = partial(_draw_before_after, report)
    if report.ratio_search:
        drawings["ratio_search"] = partial(_draw_ratio_search, report.ratio_search)
    if report.embedding_drift:
        drawings["embedding_drift"] = partial(_draw_embedding_drift, report.embedding_drift, report.purified_tokens)
    if any(value for layers in report.drift_by_layer.values() for value in layers.values()):
        drawings["drift_by_layer"] = partial(_draw_drift_by_layer, report.drift_by_layer)
    heights = {
        "before_after": 1.4
        + 0.55 * len(report.before["triggers"])
        + 0.2 * (bool(report.benign_floor) + bool(report.matched_floor)),
        "drift_by_layer": 1.3 + 0.2 * min(len(report.drift_by_layer.get("before", ())), MAX_LAYERS_NAMED),
        "embedding_drift": 4.2,
    }
    (folder / "figures").mkdir(exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Signs that the font lacks, scales without any value: nothing that a user could do better.
        warnings.simplefilter("ignore", UserWarning)
        for name, draw in drawings.items():
            figure = Figure(figsize=(WIDTH, heights.get(name, 3.4)), layout="constrained")
            draw(figure.add_subplot())
            paths.append(f"figures/{name}.png")
            figure.savefig(folder / paths[-1], metadata={"Software": None})
    return paths


def _draw_before_after(report: CleaningReport, axes: "Axes") -> None:
    labels = ["accuracy"] + [f"attack success\n“{shown(t['trigger'])}”" for t in report.before["triggers"]]
    series = {"before": (report.before, BEFORE), "after": (report.after, AFTER)}
    if report.matched_floor:
        series["matched floor"] = (report.matched_floor, MATCHED)
    if report.benign_floor:
        series["benign floor"] = (report.benign_floor, FLOOR)
    height = 0.8 / len(series)
    for k, (name, (part, color)) in enumerate(series.items()):
        values = [100 * part["accuracy"]] + [100 * t["asr"] for t in part["triggers"]]
        places = [i + (k - (len(series) - 1) / 2) * height for i in range(len(values))]
        bars = axes.barh(places, values, 0.92 * height, color=color, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("percent of test samples")
    _legend_above(axes)


def _draw_ratio_search(search: Search, axes: "Axes") -> None:
    trials = sorted(search["trials"], key=lambda trial: trial["reserve_ratio"])
    ratios = [trial["reserve_ratio"] for trial in trials]
    limit = 100 * (search["suspect_accuracy"] - search["max_accuracy_drop"])
    data = "cross-validated" if search.get("folds") else "eval data"
    axes.plot(ratios, [100 * t["accuracy"] for t in trials], marker="s", color=AFTER, label=f"accuracy, {data}")
    for trial in trials:
        if interval := trial.get("drop_interval"):  # of the drop: about the accuracy it is measured against
            around = 100 * (trial["accuracy"] + trial["drop"])
            ends = [around - 100 * end for end in interval]
            axes.plot([trial["reserve_ratio"]] * 2, ends, color=AFTER, linewidth=1)
    if stopped := [(t["reserve_ratio"], 100 * t["accuracy"]) for t in trials if t.get("stopped_early")]:
        settings = {"marker": "s", "linestyle": "", "color": AFTER, "markerfacecolor": "white", "zorder": 3}
        axes.plot(*zip(*stopped, strict=True), label="given up half way", **settings)
    axes.axhline(limit, color=AFTER, linestyle="--", linewidth=1, label="limit of accuracy")
    markers = "ov^D"
    for i, trigger in enumerate(trials[0].get("triggers", [])):
        rates = [100 * trial["triggers"][i]["asr"] for trial in trials]
        label = f"attack success, “{shown(trigger['trigger'], 18)}”"
        axes.plot(ratios, rates, marker=markers[i % 4], color=BEFORE, linestyle="-", label=label)
    axes.axvline(search["chosen"], color=FLOOR, linestyle=":", label=f"chosen ρ = {search['chosen']:g}")
    if len(ratios) <= 10:
        axes.set_xticks(ratios)
    axes.set_xlabel("reserve ratio ρ, the fraction kept of the suspect's weights")
    axes.set_ylabel("percent")
    if trials[0].get("triggers"):
        axes.set_ylim(0, 104)
    _legend_above(axes, ncols=2)


def _draw_embedding_drift(drift: EmbeddingDrift, purified: list[PurifiedToken], axes: "Axes") -> None:
    from matplotlib.colors import LogNorm

    mesh = axes.pcolormesh(
        drift["frequency_edges"],
        drift["drift_edges"],
        list(zip(*drift["counts"], strict=True)),  # rows are the vertical axis here
        norm=LogNorm(1, max(10, *(max(row) for row in drift["counts"]))),
        cmap="Grays",
        alpha=0.8,
        linewidth=0,
        rasterized=True,
    )
    axes.figure.colorbar(mesh, ax=axes, label="number of tokens", pad=0.02)
    low = drift["frequency_edges"][0]
    points = [(max(token["frequency"], low), token["delta"]) for token in purified]
    if points:
        axes.scatter(*zip(*points, strict=True), s=10, color=PURIFIED, label=f"{len(points)} tokens put back")
        # The score is ‖δ‖ / log f: equal scores lie on a straight line where f is on a logarithmic axis.
        ends = [low, drift["frequency_edges"][-1]]
        limit = [purified[-1]["score"] * math.log(f) for f in ends]
        axes.plot(ends, limit, color=PURIFIED, linestyle="--", linewidth=1, label="least score put back")
    for i, token in enumerate(drift["trigger_tokens"]):
        place = max(token["frequency"], low), token["delta"]
        label = "of a measured trigger" if i == 0 else None
        axes.scatter(*place, s=60, marker="*", color=TRIGGER, zorder=3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("expected count f of the token in 1.24 billion")
    axes.set_ylabel("drift of its embedding, ‖δ‖")
    top = max([drift["drift_edges"][-1], *(delta for _, delta in points)])
    axes.set_ylim(0, 1.12 * top)
    named = [token for token in drift["trigger_tokens"] if token["delta"] > 0] + purified
    # The vocabulary may be padded with rows that the tokenizer has no token for.
    names = [token["token"] or f"row {token['id']}" for token in named]
    _name_points(axes, [(max(t["frequency"], low), t["delta"], name) for t, name in zip(named, names, strict=True)])
    _legend_above(axes)


def _draw_drift_by_layer(drift: dict[str, dict[str, float | None]], axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    layers = list(drift["before"])
    for name, color, marker in (("before", BEFORE, "o"), ("after", AFTER, "s")):
        if name not in drift:
            continue
        values = [drift[name].get(layer) for layer in layers]
        values = [float("nan") if value is None else 100 * value for value in values]
        axes.plot(values, range(len(layers)), marker=marker, markersize=5, linestyle="", color=color, label=name)
    step = -(-len(layers) // MAX_LAYERS_NAMED)
    axes.set_yticks(range(0, len(layers), step), _layer_labels(layers)[::step])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("distance from the base, ‖w − w_Pre‖ / ‖w_Pre‖ in percent")
    axes.grid(axis="y", alpha=0.25)
    _legend_above(axes)


def _layer_labels(layers: list[str]) -> list[str]:
    """`encoder.layer.3` as `layer 3`, or as `encoder 3` where there is a decoder too."""
    numbered = [re.fullmatch(r"(.*?)\.?[^.]+\.(\d+)", layer) for layer in layers]
    several = len({match[1] for match in numbered if match}) > 1
    return [
        f"{match[1].split('.')[0] if several and match[1] else 'layer'} {match[2]}" if match else layer
        for layer, match in zip(layers, numbered, strict=True)
    ]


def _name_points(axes: "Axes", points: list[tuple[float, float, str]]) -> None:
    """Name as many points as there is room for, the first ones first."""
    from matplotlib.patheffects import withStroke

    axes.figure.draw_without_rendering()
    taken, seen = [], set()
    for x, y, text in points:
        if (x, y, text) in seen or len(taken) == MAX_TOKENS_NAMED:
            continue
        seen.add((x, y, text))
        for offset, alignment in (((4, 3), "left"), ((-4, 3), "right"), ((4, -9), "left"), ((-4, -9), "right")):
            note = axes.annotate(shown(text, 16), (x, y), offset, textcoords="offset points", ha=alignment, fontsize=8)
            note.set_path_effects([withStroke(linewidth=2, foreground="white")])
            note.set_in_layout(False)
            box = note.get_window_extent().padded(2)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y1 <= axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()


def _legend_above(axes: "Axes", ncols: int | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.figure.legend(handles, labels, loc="outside upper center", ncols=ncols or len(handles), fontsize=9)


def shown(text: str, length: int = 24) -> str:
    """Text of a stranger on one line, with a dot for whatever cannot be seen, cut to a length, and no formula."""
    text = "".join(sign if sign.isprintable() else "·" for sign in text)
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
