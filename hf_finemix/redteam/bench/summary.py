"""The results of a benchmark as one table (Markdown, CSV, JSON) and one figure."""

import csv
import io
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ...io.output_folder import write_text
from ..registry import DEFENSES, find_class
from .recipe import BenchRecipe

COLUMNS = ("attack", "defense", "runs", "accuracy", "accuracy_sd", "asr", "asr_sd", "ratios", "trainings", "seconds")
COLUMNS += ("retuned_from_asr", "retuned_clean_asr", "retuned_poisoned_asr")


def summarize(recipe: BenchRecipe, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    One row for each attack and defense that has been run, in the order of the recipe.

    Returns:
        `list[dict]`: `attack`, `defense`, `runs` (how many), mean and standard deviation of `accuracy` and `asr` over
        them (fractions; of several triggers the mean), `ratios` (ρ of each run), `trainings` (mean, the trials of the
        search counted), `seconds` (mean), and of those runs alone that were tuned again the mean ASR before,
        `retuned_from_asr`, and after, `retuned_clean_asr` and `retuned_poisoned_asr`. What was not measured is `None`.
    """
    rows = []
    for attack in recipe.attacks:
        for defense in recipe.defenses:
            part = [r for r in results if (r["attack"], r["defense"]) == (attack, defense)]
            if not part:
                continue
            row: dict[str, Any] = {"attack": attack, "defense": defense, "runs": len(part)}
            for name, values in (("accuracy", [r["accuracy"] for r in part]), ("asr", _rates(part))):
                row[name] = mean(values) if values else None
                row[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
            row["ratios"] = [r["reserve_ratio"] for r in part]
            row["trainings"] = mean(_trainings(r) for r in part)
            row["seconds"] = mean(r["seconds"] for r in part)
            again = [{"from": r, **r["retuned"]} for r in part if r["retuned"]]
            for kind in ("from", "clean", "poisoned"):
                rates = _rates([r[kind] for r in again if kind in r])
                row[f"retuned_{kind}_asr"] = mean(rates) if rates else None
            rows.append(row)
    return rows


def _rates(measured: list[dict[str, Any]]) -> list[float]:
    return [mean(part["asr"].values()) for part in measured if part["asr"]]


def _trainings(result: dict[str, Any]) -> int:
    if search := result["search"]:
        return sum(trial["trainings"] for trial in search["trials"])
    return int(result["seconds"] > 0 and result["reserve_ratio"] is not None)


def markdown_table(rows: list[dict[str, Any]], floors: dict[str, dict[str, float]]) -> str:
    """A table for each attack; `floors` are the benign floors by attack: `accuracy` and `asr`, fractions."""
    parts = []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        floor = floors.get(attack)
        clean = f" (benign floor: {_percent(floor['accuracy'])} / {_percent(floor['asr'])})" if floor else ""
        lines = [f"**{attack}**{clean}", ""]
        lines += ["| defense | ACC | ASR | ρ | trainings | seconds | re-tuned, first seed: ASR → clean / poisoned |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in (row for row in rows if row["attack"] == attack):
            ratios = sorted({ratio for ratio in row["ratios"] if ratio is not None})
            before, *after = (_percent(row[f"retuned_{kind}_asr"]) for kind in ("from", "clean", "poisoned"))
            cells = [
                _written(row["defense"]),
                _percent(row["accuracy"], row["accuracy_sd"]),
                _percent(row["asr"], row["asr_sd"]),
                ", ".join(f"{ratio:g}" for ratio in ratios) or "–",
                f"{round(row['trainings'], 1):g}",
                f"{row['seconds']:.0f}",
                "–" if after == ["–", "–"] else f"{before} → {' / '.join(after)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _written(label: str) -> str:
    """The label of a defense for people: `fine_mixing+epur` as `Fine-mixing + E-PUR`."""
    name = next((name for name in DEFENSES if label.startswith(name)), None)
    written = find_class(DEFENSES[name]).pretty_name + label.removeprefix(name) if name else label
    return written.replace("_", " ").replace("+epur", " + E-PUR")


def _percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def write_summary(
    recipe: BenchRecipe, results: list[dict[str, Any]], floors: dict[str, dict[str, float]], folder: Path
) -> str:
    """Write `table.md`, `table.csv`, `table.json` and `accuracy_asr.png` into a folder; returns the Markdown."""
    rows = summarize(recipe, results)
    table = markdown_table(rows, floors)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "ratios": " ".join(map(str, row["ratios"]))})
    write_text(folder / "table.md", table)
    write_text(folder / "table.csv", text.getvalue())
    content = {"name": recipe.name, "benign_floors": floors, "rows": rows, "runs": results}
    write_text(folder / "table.json", json.dumps(content, indent=1) + "\n")
    if rows:
        draw(rows, floors, folder / "accuracy_asr.png")
    return table


def draw(rows: list[dict[str, Any]], floors: dict[str, dict[str, float]], path: Path) -> None:
    """ACC against ASR, a panel for each attack and a point for each defense, with the floors drawn in."""
    import matplotlib
    from matplotlib.figure import Figure

    from ...report.figures import AFTER, BEFORE, FLOOR, MATCHED, PURIFIED, STYLE

    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    defenses = list(dict.fromkeys(row["defense"] for row in rows))
    plain = list(dict.fromkeys(name.removesuffix("+epur") for name in defenses))
    fixed = {"none": "#000000", "fine_tuning": BEFORE, "matched_floor": MATCHED}
    fixed |= {"fine_mixing": AFTER, "fine_purifying": PURIFIED}
    others = iter(["#E69F00", "#CC79A7", "#F0E442", "#8C564B", "#7F7F7F", "#17BECF", "#9467BD"] * 4)
    colors = {name: fixed.get(name) or next(others) for name in plain}
    markers = dict(zip(plain, "ovsDP^X*<>pdhH8" * 2, strict=False))
    columns = min(3, len(attacks))
    lines = -(-len(attacks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 0.9 + 2.7 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for panel, attack in zip(panels, attacks, strict=False):
            panel.set_title(attack.replace("_", " "), fontsize=10)
            if floors.get(attack):
                settings = {"color": FLOOR, "linestyle": ":", "linewidth": 1}
                panel.axhline(100 * floors[attack]["asr"], **settings, label="benign floor (a clean model)")
                panel.axvline(100 * floors[attack]["accuracy"], **settings)
            for row in (row for row in rows if row["attack"] == attack and row["asr"] is not None):
                name = row["defense"].removesuffix("+epur")
                panel.errorbar(
                    100 * row["accuracy"],
                    100 * row["asr"],
                    xerr=100 * (row["accuracy_sd"] or 0),
                    yerr=100 * (row["asr_sd"] or 0),
                    marker=markers[name],
                    markersize=6,
                    color=colors[name],
                    markerfacecolor="white" if row["defense"] != name else colors[name],
                    linestyle="",
                    linewidth=1,
                    label=_written(row["defense"]),
                )
            panel.set_ylim(-4, 106)
            panel.grid(alpha=0.2)
        for panel in panels[len(attacks) :]:
            panel.set_visible(False)
        figure.supxlabel("accuracy on clean test samples, percent (right is better)", fontsize=10)
        figure.supylabel("attack success, percent (low is better)", fontsize=10)
        handles: dict[str, Any] = {}  # by their labels: one for all panels
        for panel in panels:
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
        figure.savefig(path, metadata={"Software": None})
