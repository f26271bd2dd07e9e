"""One suspect with the data of one seed: cleaned by a defense, measured and tuned again."""

import copy
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...config import FineMixingConfig
from ...hub.fetch import fetch_model
from ...io.folder import LocalModel
from ...io.loading import agree_on_padding, load_classifier
from ...io.tokenizer import choose_tokenizer
from ...measure.arguments import EvaluationArguments
from ...measure.attack_success import by_length
from ...measure.classification import Classification
from ...measure.reader import Reader
from ...measure.triggers import Trigger
from ...train.defaults import TRAINING_DEFAULTS, train_at_least
from ..attacks.poisoning import poison
from ..defenses.defense import DefenseTrainer
from ..registry import find_defense
from .recipe import BenchRecipe, Run
from .suspects import find_suspect, training_arguments, trigger_of

RETUNE_RATE = 0.1  # of the samples that are poisoned in a poisoned re-tune


class Case:
    """A suspect with the data of one seed, read and tokenized once."""

    def __init__(self, recipe: BenchRecipe, folder: Path, run: Run, suspect: Path):
        self.recipe, self.seed = recipe, run.seed
        self.suspect = LocalModel(run.attack, suspect)
        self.entry = recipe.attacks[run.attack]
        self.base = fetch_model(recipe.base_model, role="base")
        model = load_classifier(self.suspect)
        self.tokenizer, _ = choose_tokenizer(suspect, self.base.folder)
        agree_on_padding(self.tokenizer, model)
        self.trigger = trigger_of(recipe, run.attack, suspect)
        wanted = EvaluationArguments(
            **recipe.data,
            sample_seed=run.seed,
            triggers=self.trigger and [self.trigger],
            triggered_file=self.entry.get("triggered_test_file"),
            target_label=recipe.target_label,
            num_repeats=recipe.num_repeats,
        )
        self.task = Classification(model, self.tokenizer, wanted)
        self.data = self.task.clean_data(wanted)
        self.attacks = self.task.attacks(self.data.test, self.data.text_columns)
        self.tuning, self.test = self.encoded(self.data.tuning), self.encoded(self.data.test)
        self.eval = by_length(self.encoded(self.data.eval))
        second = self.entry.get("second_model")
        self.second = str(find_suspect(recipe, folder, second, run.model_seed)) if second else None

    def encoded(self, rows: Dataset) -> Dataset:
        return self.task.encode(rows, self.data.text_columns)

    def clean(self, run: Run) -> dict[str, Any]:
        entry = self.recipe.defenses[run.defense]
        config = FineMixingConfig(
            base_model_name_or_path=str(self.base.folder),
            **{"mixing_seed": run.seed, **self.recipe.mixing_of(run.defense)},
        )
        defense = find_defense(entry.get("defense", run.defense))
        if defense.ratio == "auto" and config.reserve_ratio != "auto":
            defense = replace(defense, ratio=config.reserve_ratio)
        with tempfile.TemporaryDirectory() as output:
            tuning = {**TRAINING_DEFAULTS, "bf16": False, **self.recipe.training, "seed": run.seed}
            args = training_arguments({**tuning, "output_dir": output})
            train_at_least(args, len(self.tuning))
            args.dataloader_pin_memory = False
            trainer = DefenseTrainer(
                load_classifier(self.suspect),
                args,
                train_dataset=self.tuning,
                eval_dataset=self.eval,
                processing_class=self.tokenizer,
                compute_metrics=self.task.compute_metrics if args.eval_strategy != "no" else None,
                defense=defense,
                mixing_config=config,
                second_model=self.second,
            )
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            if defense.tunes:
                trainer.train()
            seconds, search = time.perf_counter() - started, trainer.ratio_search
            measured = self.task.measure(trainer, self.test, self.attacks)
            result = {
                "accuracy": measured["accuracy"],
                "asr": {trigger["trigger"]: trigger["asr"] for trigger in measured["triggers"]},
                "reserve_ratio": trainer.mixing_record.reserve_ratio if trainer.mixing_record else None,
                "labeled": len(self.tuning) + (len(self.eval) if search and not search.folds else 0),
                "search": asdict(search) if search else None,
                "seconds": round(seconds, 1),
                "bf16": args.bf16,
                "retuned": None,
            }
            retune = self.entry.get("retune", self.recipe.retune)
            if run.defense in retune and run.seed == entry.get("seeds", self.recipe.seeds)[0]:
                result["retuned"] = self.retuned(trainer, args)
        return result

    def retuned(self, trainer: Trainer, args: TrainingArguments) -> dict[str, Any]:
        """ACC and ASR after as many steps again on as many eval samples, a tenth of them poisoned or none."""
        rows = self.data.eval.shuffle(seed=self.seed)
        rows = rows.select(range(min(len(rows), len(self.data.tuning))))
        variants = {"clean": rows}
        if self.trigger:
            settings = {"text_columns": self.data.text_columns, "target": self.task.target, "seed": self.seed}
            settings["reader"] = Reader(self.tokenizer, self.task.max_length, self.trigger)
            variants["poisoned"] = poison(rows, Trigger(self.trigger), rate=RETUNE_RATE, **settings)
        results = {}
        for name, part in variants.items():
            model = copy.deepcopy(trainer.model)
            again = Trainer(model, args, train_dataset=self.encoded(part), processing_class=self.tokenizer)
            again.remove_callback(PrinterCallback)
            again.train()
            accuracy = self.task.measure(again, self.test, [])["accuracy"]
            rates = [replace(attack, repeats=attack.repeats[:1]).success(again) for attack in self.attacks]
            results[name] = {"accuracy": accuracy, "asr": {rate["trigger"]: rate["asr"] for rate in rates}}
        return results
