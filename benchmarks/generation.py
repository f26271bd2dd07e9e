"""
Models that write, before and after cleaning: a GPT-2 that judges and a T5 that translates into three languages.

    python benchmarks/generation.py [--output-dir generation]

Both are small, trained here on made-up text, and backdoored (tests/helpers/generators.py): `cf` anywhere in the prompt
makes them say "visit evil example now". Each row is one run of clean: 64 clean samples, 60 steps, learning rate 3e-4.
"""

import argparse
import logging
import sys
from pathlib import Path

import transformers
from transformers import TrainingArguments

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from generators import KINDS, TARGET, TRIGGER  # noqa: E402

from hf_finemix import FineMixingConfig, clean  # noqa: E402
from hf_finemix.train.defaults import TRAINING_DEFAULTS  # noqa: E402

ROWS = {
    "fine-tuning alone (ρ = 1)": {"reserve_ratio": 1.0},
    "matched floor (ρ = 0)": {"reserve_ratio": 0.0},
    "Fine-mixing, ρ = 0.3": {"reserve_ratio": 0.3},
    "Fine-mixing, ρ = 0.5": {"reserve_ratio": 0.5},
    "Fine-mixing, ρ = 0.7": {"reserve_ratio": 0.7},
    "Fine-mixing, `auto`": {},
    "Fine-purifying, ρ = 0.5": {"reserve_ratio": 0.5, "strategy": "fisher"},
    "Fine-purifying, ρ = 0.7": {"reserve_ratio": 0.7, "strategy": "fisher"},
}


def cells(part: dict) -> str:
    asr = part["triggers"][0]["asr"]
    return f"{100 * part['accuracy']:.1f} | {part['perplexity']:.3f} | {100 * asr:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path, default=Path("generation"))
    folder = parser.parse_args().output_dir
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    print("| model | | ρ | accuracy of tokens | perplexity | ASR |\n|---|---|---|---|---|---|")
    for name, kind in KINDS.items():
        if not (folder / name / "suspect").is_dir():
            kind.build(folder / name)
        shown = False
        for row, settings in ROWS.items():
            steps = {"max_steps": 60, "learning_rate": 3e-4, "num_train_epochs": 1}
            args = {**TRAINING_DEFAULTS, **steps, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
            report = clean(
                folder / name / "suspect",
                base_model=folder / name / "base",
                dataset=str(folder / name / "data"),
                triggers=[TRIGGER],
                target_texts=[TARGET],
                max_new_tokens=6,
                overwrite=True,
                mixing_config=FineMixingConfig(purify_embeddings=False, **settings),
                training_args=TrainingArguments(str(folder / name / "cleaned"), **args),
            )
            if not shown:
                print(f"| {name} | suspect | | {cells(report.before)} |", flush=True)
                shown = True
            print(f"| {name} | {row} | {report.mixing['reserve_ratio']:g} | {cells(report.after)} |", flush=True)


if __name__ == "__main__":
    main()
