"""
What choosing ρ and cleaning cost, and what each ρ gives.

    python benchmarks/ratio_search.py grid           # the whole grid of ρ against the search: both choices
    python benchmarks/ratio_search.py draw           # accuracy against attack success along ρ: trade_off.png
    python benchmarks/ratio_search.py cost FOLDER    # cleaning at a fixed ρ against plain fine-tuning, medians of five

`grid` and `draw` read what `hf-finemix bench` wrote into `docs/benchmark` by the recipes `sst2` and `sst2_ratios`.
FOLDER is a suspect's, such as ../shared/suspects/sst2-badword. 64 samples of the validation split are tuned on, ρ is
chosen on the other 808. The data are found by FINEMIX_SHARED, default ../shared.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingTrainer
from hf_finemix.demo import embedded_base
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import load_classifier
from hf_finemix.io.tokenizer import choose_tokenizer
from hf_finemix.measure.arguments import DataArguments
from hf_finemix.measure.clean_data import load_clean_data, tokenize
from hf_finemix.report.figures import AFTER, BEFORE, FLOOR, MATCHED, PURIFIED, STYLE
from hf_finemix.train.defaults import TRAINING_DEFAULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "benchmark"
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))
DROP = 0.05
LAST_NAMED = 0.6  # above it all points lie on each other
ATTACKS = {"badword": "a rare word", "badsent": "a sentence"}
DEFENSES = {"fine_mixing": "Fine-mixing", "fine_purifying": "Fine-purifying"}
POINTS = (("none", "the suspect", "#000000", "*"), ("fine_tuning", "fine-tuning alone", BEFORE, "v"))
POINTS += (("matched_floor", "matched floor (ρ = 0)", MATCHED, "D"),)


class Subject:
    """A suspect and its data."""

    def __init__(self, folder: Path):
        self.source, self.base = LocalModel(folder.name, folder), embedded_base()
        self.tokenizer, _ = choose_tokenizer(folder, self.base)
        wanted = DataArguments(dataset=str(SHARED / "data" / "sst2"), train_split="validation")
        data = load_clean_data(wanted, {"negative": 0, "positive": 1})
        self.tuning, self.eval = (
            tokenize(rows, self.tokenizer, data.text_columns, None) for rows in (data.tuning, data.eval)
        )

    def trainer(self, config: FineMixingConfig | None, **more) -> Trainer:
        """A stock Trainer without a config."""
        settings = {**TRAINING_DEFAULTS, "max_steps": 100, "num_train_epochs": 1, "bf16": True, "use_cpu": True}
        args = TrainingArguments(tempfile.mkdtemp(), **settings, disable_tqdm=True, report_to="none")
        args.dataloader_pin_memory = False
        common = {"train_dataset": self.tuning, "eval_dataset": self.eval, "processing_class": self.tokenizer, **more}
        if config is None:
            trainer = Trainer(load_classifier(self.source), args, **common)
        else:
            trainer = FineMixingTrainer(
                load_classifier(self.source), args, **common, base_model=str(self.base), mixing_config=config
            )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def timed(self, config: FineMixingConfig | None, **more) -> tuple[float, Trainer]:
        """Seconds of train()."""
        trainer = self.trainer(config, **more)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started, trainer


def runs_of(name: str) -> list[dict[str, Any]]:
    """What `hf-finemix bench` has measured by a recipe."""
    return [json.loads(path.read_text()) for path in sorted((RUNS / name / "runs").glob("*.json"))]


def curve(runs: list[dict[str, Any]], attack: str, defense: str) -> dict[float, list[dict[str, Any]]]:
    """The runs of each ρ of the grid, by seed."""
    points: dict[float, list[dict[str, Any]]] = {}
    for run in runs:
        if run["attack"] == attack and run["defense"].startswith(f"{defense} "):
            points.setdefault(run["reserve_ratio"], []).append(run)
    return {ratio: sorted(points[ratio], key=lambda run: run["seed"]) for ratio in sorted(points)}


def grid() -> None:
    """The choice of the whole grid against that of the search, and how many trainings each took."""
    every, searched = runs_of("sst2_ratios"), runs_of("sst2")
    print("| suspect | strategy | seed | whole grid: ρ, trainings | search: ρ, trainings |")
    print("|---|---|---|---|---|")
    for attack, (defense, written) in product(ATTACKS, DEFENSES.items()):
        points = curve(every, attack, defense)
        for run in (run for run in searched if (run["attack"], run["defense"]) == (attack, defense)):
            tried = [one for part in points.values() for one in part if one["seed"] == run["seed"]]
            if not tried:
                continue
            within = [r["reserve_ratio"] for r in tried if r["search"]["trials"][0]["drop"] <= DROP + 1e-9]
            trainings = sum(trial["trainings"] for trial in run["search"]["trials"])
            whole = f"{min(within, default='none')}, {len(tried)}"
            print(f"| {attack} | {written} | {run['seed']} | {whole} | {run['reserve_ratio']:g}, {trainings} |")


def draw() -> None:
    """Accuracy against attack success along ρ, for both suspects and both strategies."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        panels = figure.subplots(1, len(ATTACKS), sharex=True, sharey=True)
        floors = json.loads((RUNS / "sst2" / "benign_floors.json").read_text())
        every = runs_of("sst2_ratios")
        seeds = {run["seed"] for run in every}
        others = [run for run in runs_of("sst2") if run["seed"] in seeds]
        for panel, (attack, title) in zip(panels, ATTACKS.items(), strict=True):
            _panel(panel, attack, floors[attack], every, others)
            panel.set_title(title, fontsize=10)
        figure.supxlabel("accuracy on clean test sentences, percent (right is better)", fontsize=10)
        figure.supylabel("attack success, percent (low is better)", fontsize=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        figure.savefig(RUNS / "trade_off.png", metadata={"Software": None})


def _panel(
    panel: "Axes", attack: str, floor: dict[str, float], every: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    panel.axhline(100 * floor["asr"], color=FLOOR, linestyle=":", linewidth=1, label="a clean model")
    panel.axvline(100 * floor["accuracy"], color=FLOOR, linestyle=":", linewidth=1)
    styles = (("fine_mixing", AFTER, "o", (-15, 3)), ("fine_purifying", PURIFIED, "s", (5, -8)))
    for defense, color, marker, place in styles:
        points = curve(every, attack, defense)
        accuracy = [100 * statistics.mean(r["accuracy"] for r in part) for part in points.values()]
        rates = [100 * statistics.mean(mean_rate(r) for r in part) for part in points.values()]
        panel.plot(
            accuracy,
            rates,
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=f"{DEFENSES[defense]}, ρ = 0.1 … 0.9",
        )
        for ratio, x, y in zip(points, accuracy, rates, strict=True):
            if ratio <= LAST_NAMED:
                panel.annotate(f"{ratio:g}", (x, y), place, textcoords="offset points", fontsize=7, color=color)
    for defense, written, color, marker in POINTS:
        part = [r for r in others if (r["attack"], r["defense"]) == (attack, defense)]
        x, y = (100 * statistics.mean(values) for values in ([r["accuracy"] for r in part], map(mean_rate, part)))
        panel.plot(x, y, color=color, marker=marker, markersize=7, linestyle="", label=written)
    panel.set_ylim(-4, 106)
    panel.grid(alpha=0.2)


def mean_rate(run: dict[str, Any]) -> float:
    """The attack success of a run, of several triggers the mean."""
    return statistics.mean(run["asr"].values())


def cost(folder: str) -> None:
    subject = Subject(Path(folder))
    configs = {
        "fine-tuning": None,
        "Fine-mixing": FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False),
        "Fine-mixing + E-PUR": FineMixingConfig(reserve_ratio=0.5),
        "Fine-purifying": FineMixingConfig(reserve_ratio=0.5, strategy="fisher", purify_embeddings=False),
    }
    seconds = {name: [] for name in configs}
    for _ in range(5):
        for name, config in configs.items():
            seconds[name].append(subject.timed(config)[0])
    plain = statistics.median(seconds["fine-tuning"])
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.1f} s, {statistics.median(values) / plain:.2f} times fine-tuning")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["grid"]:
            grid()
        case ["draw"]:
            draw()
        case ["cost", folder]:
            cost(folder)
        case _:
            sys.exit(__doc__)
