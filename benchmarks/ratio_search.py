"""
What choosing ρ and cleaning cost, on a suspect that `hf-finemix bench benchmarks/recipes/sst2.yaml` has trained.

    python benchmarks/ratio_search.py grid FOLDER…   # all nine ρ, then the search: choice and time of both
    python benchmarks/ratio_search.py cost FOLDER    # cleaning at a fixed ρ against plain fine-tuning, medians of five

FOLDER is a suspect's, such as bench/sst2/suspects/badword-0. 64 samples of the validation split are tuned on, ρ is
chosen on the other 808, or by four folds of the 64. The data are found by FINEMIX_SHARED, default ../shared.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingTrainer
from hf_finemix.classifier import load_classifier
from hf_finemix.data import DataArguments, load_clean_data, tokenize
from hf_finemix.demo import embedded_base
from hf_finemix.hub import LocalModel
from hf_finemix.settings import TRAINING_DEFAULTS
from hf_finemix.tokenizer import choose_tokenizer

SHARED = Path(os.environ.get("FINEMIX_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
DROP = 0.05


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


def grid(folders: list[str]) -> None:
    print("| suspect | strategy | ρ of the grid, seconds | eval data: ρ, trainings, seconds | 64 labels: the same |")
    print("|---|---|---|---|---|", flush=True)
    for folder in folders:
        subject = Subject(Path(folder))
        for strategy in ("random", "fisher"):
            shared = {"strategy": strategy, "max_accuracy_drop": DROP}
            found, total = None, 0.0
            for ratio in FineMixingConfig().candidate_ratios:
                # One candidate: the search then is a single training, judged by the same rule.
                seconds, trainer = subject.timed(FineMixingConfig(candidate_ratios=[ratio], **shared))
                total += seconds
                if found is None and trainer.ratio_search.trials[0]["accepted"]:
                    found = ratio
            cells = []
            for more in ({}, {"cross_validation_folds": 4}):
                seconds, trainer = subject.timed(FineMixingConfig(**shared, **more))
                search = trainer.ratio_search
                trainings = sum(trial["trainings"] for trial in search.trials) + bool(search.folds)
                cells.append(f"{search.chosen:g}, {trainings}, {seconds:.0f}")
            print(f"| {Path(folder).name} | {strategy} | {found}, {total:.0f} | {' | '.join(cells)} |", flush=True)


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
    if sys.argv[1:2] == ["grid"] and sys.argv[2:]:
        grid(sys.argv[2:])
    elif sys.argv[1:2] == ["cost"] and len(sys.argv) == 3:
        cost(sys.argv[2])
    else:
        sys.exit(__doc__)
