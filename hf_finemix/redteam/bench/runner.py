"""Running a recipe: suspects are trained once, every run is a file of its own, and a killed benchmark goes on."""

import copy
import json
import logging
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...config import FineMixingConfig
from ...errors import FineMixingError
from ...hub.fetch import fetch_model
from ...io.folder import LocalModel
from ...io.loading import agree_on_padding, load_classifier, max_tokens
from ...io.output_folder import write_text
from ...io.tokenizer import choose_tokenizer
from ...measure.attack_success import (
    Attack,
    MeasureArguments,
    by_length,
    find_attacks,
    measure,
    predictor,
    resolve_target_label,
)
from ...measure.clean_data import CleanData, DataArguments, TestDataArguments, load_clean_data, tokenize
from ...measure.metrics import compute_classification_metrics
from ...measure.reader import Reader
from ...measure.triggers import Trigger
from ...train.defaults import TRAINING_DEFAULTS, train_at_least
from ..attacks.poisoning import poison
from ..defenses import find_defense
from ..defenses.defense import DefenseTrainer
from ..poisoned_model import MANIFEST_NAME, PoisonArguments, poison_model
from ..poisoned_model import TRAINING_DEFAULTS as POISON_DEFAULTS
from .recipe import BenchRecipe, Run

__all__ = ["benign_floors", "known_floors", "read_results", "run_benchmark"]

logger = logging.getLogger(__name__)

FLOORS_NAME = "benign_floors.json"
CLEAN = "clean"  # label of the model that is trained without poison
RETUNE_RATE = 0.1  # of the samples that are poisoned in a poisoned re-tune


def run_benchmark(recipe: BenchRecipe, folder: Path) -> dict[str, str]:
    """
    Train the suspects that are not there yet, and run what has not been run.

    Several processes may work on one folder: each takes what no other is at. A run that was killed is run again.

    Args:
        recipe ([`BenchRecipe`]): What to run.
        folder (`Path`): Gets `suspects/` and `runs/`.

    Returns:
        `dict[str, str]`: What went wrong, by run; the others are done all the same.

    Raises:
        [`FineMixingError`]: The recipe cannot be run, or the folder has runs of other settings.
    """
    work, subjects, failures = list(recipe.runs()), {}, {}
    _check(recipe)
    read_results(recipe, folder)  # or runs of another recipe would be taken for this one's
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in tqdm(work, recipe.name, disable=None):
        path = folder / "runs" / f"{run.key}.json"
        if path.is_file():
            continue
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if path.is_file():
                    continue
                suspect = _suspect(recipe, folder, run.attack, run.model_seed)
                key = run.attack, run.model_seed, run.seed
                if key not in subjects:
                    subjects = {key: _Subject(recipe, folder, run, suspect)}  # one at a time
                result = {**asdict(run), **subjects[key].clean(run), "settings": recipe.settings_of(run)}
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
                partial.replace(path)
                logger.info("%s: ACC %.3f, ASR %s", run.key, result["accuracy"], result["asr"])
        except Timeout:
            continue  # another process is at it
        except FineMixingError as error:
            failures[run.key] = str(error)
            logger.error("%s: %s", run.key, error)
    return failures


def read_results(recipe: BenchRecipe, folder: Path) -> list[dict[str, Any]]:
    """
    The results there are, of all processes, in the order of the recipe.

    Returns:
        `list[dict]`: The fields of [`Run`], `accuracy`, `asr` (of each trigger), `reserve_ratio`, `labeled`
        (samples), `search` (as in a report), `seconds`, `bf16`, of a few `retuned`, and `settings`, what it was run
        with.

    Raises:
        [`FineMixingError`]: A run is of other settings than the recipe's, or cannot be read.
    """
    results = []
    for run in recipe.runs():
        path = folder / "runs" / f"{run.key}.json"
        if not path.is_file():
            continue
        try:
            results.append(json.loads(path.read_text(encoding="utf-8")))
            settings, wanted = results[-1]["settings"], recipe.settings_of(run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FineMixingError(f"{path} is no result of a benchmark: delete it to run it again.") from error
        if settings != wanted:
            changed = sorted(name for name in settings.keys() | wanted if settings.get(name) != wanted.get(name))
            raise FineMixingError(
                f"{path} was run with other settings than the recipe's ({', '.join(changed)}): give another "
                "output_dir, or delete it, and the suspects if they are to change."
            )
    return results


def _check(recipe: BenchRecipe) -> None:
    """Find what is wrong with attacks and trainings before hours go by."""
    trainings = {"training": recipe.training, "poison_training": recipe.poison_training}
    for label, entry in recipe.attacks.items():
        if "suspect" not in entry:
            trainings[f"training of {label!r}"] = entry.get("training") or {}
            attack = _poison_arguments(recipe, label, None).make_attack()
            if attack.needs_clean_model and not entry.get("on_top"):
                raise FineMixingError(f"the attack {label!r} starts from a clean fine-tuned model: give on_top: true.")
            if attack.needs_base and entry.get("on_top"):
                raise FineMixingError(f"the attack {label!r} starts from the base: leave on_top.")
            if hasattr(attack, "triggered_file"):
                for name in ("triggered_file", "triggered_test_file"):
                    if not entry.get(name):
                        raise FineMixingError(f"the attack {label!r} needs its {name}.")
    for name, settings in trainings.items():
        try:
            _arguments(settings)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise FineMixingError(f"{name} cannot be: {reason}.") from error


def _suspect(recipe: BenchRecipe, folder: Path, label: str, seed: int) -> Path:
    """The folder of a suspect, trained if it is not there."""
    if given := recipe.attacks.get(label, {}).get("suspect"):
        return Path(given)
    path = folder / "suspects" / f"{label}-{seed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (path / MANIFEST_NAME).is_file():
            return path
        entry = recipe.attacks.get(label, {})
        start = str(_suspect(recipe, folder, CLEAN, seed)) if entry.get("on_top") else None
        arguments = _poison_arguments(recipe, label, start)
        own = arguments.make_attack().training
        settings = {**POISON_DEFAULTS, **recipe.poison_training, **own, **(entry.get("training") or {}), "seed": seed}
        logger.info("Training the suspect %s (seed %d)", label, seed)
        poison_model(recipe.base_model, arguments, _arguments(settings), path)
    return path


def _poison_arguments(recipe: BenchRecipe, label: str, start: str | None) -> PoisonArguments:
    entry = recipe.attacks.get(label, {})
    shared = {name: value for name, value in recipe.data.items() if name in TestDataArguments.__dataclass_fields__}
    names = ("trigger", "poison_rate", "triggered_file", "triggered_test_file")
    return PoisonArguments(
        **shared,
        attack="none" if label == CLEAN else entry.get("attack", label),
        target_label=recipe.target_label,
        train_split=recipe.poison_split,
        class_names=recipe.class_names,
        start_model=start,
        **{name: entry[name] for name in names if name in entry},
    )


def _trigger(recipe: BenchRecipe, label: str, suspect: Path) -> str | None:
    """Of a suspect that was given, the recipe's; of one that was trained here, its manifest's."""
    if "suspect" in recipe.attacks[label]:
        return recipe.attacks[label].get("trigger")
    return json.loads((suspect / MANIFEST_NAME).read_text(encoding="utf-8"))["trigger"]


def _arguments(settings: dict[str, Any]) -> TrainingArguments:
    usual: dict[str, Any] = {"output_dir": "unused", "disable_tqdm": True, "report_to": "none"}
    usual["use_cpu"] = not torch.accelerator.is_available()  # or TrainingArguments refuses bf16
    return TrainingArguments(**{**usual, **settings})


class _Subject:
    """A suspect with the data of one seed, read and tokenized once."""

    def __init__(self, recipe: BenchRecipe, folder: Path, run: Run, suspect: Path):
        self.recipe, self.seed = recipe, run.seed
        self.suspect = LocalModel(run.attack, suspect)
        self.entry = recipe.attacks[run.attack]
        self.base = fetch_model(recipe.base_model, role="base")
        model = load_classifier(self.suspect)
        self.tokenizer, _ = choose_tokenizer(suspect, self.base.folder)
        agree_on_padding(self.tokenizer, model)
        self.label2id = {name: i for i, name in model.config.id2label.items()}
        self.length = max_tokens(recipe.data.get("max_length"), self.tokenizer, model)
        self.data: CleanData = load_clean_data(DataArguments(**recipe.data, sample_seed=run.seed), self.label2id)
        self.trigger = _trigger(recipe, run.attack, suspect)
        wanted = MeasureArguments(
            triggers=[self.trigger] if self.trigger else None,
            triggered_file=self.entry.get("triggered_test_file"),
            target_label=recipe.target_label,
            num_repeats=recipe.num_repeats,
        )
        self.target = resolve_target_label(wanted, model.config.id2label)
        test, columns = self.data.test, self.data.text_columns
        self.attacks: list[Attack] = find_attacks(
            wanted, test, self.tokenizer, columns, self.target, self.label2id, self.length
        )
        self.tuning, self.eval, self.test = (self.encoded(part) for part in (self.data.tuning, self.data.eval, test))
        self.eval = by_length(self.eval)
        self.second = None
        if second := self.entry.get("second_model"):
            self.second = str(_suspect(recipe, folder, second, run.model_seed))

    def encoded(self, rows: Dataset) -> Dataset:
        return tokenize(rows, self.tokenizer, self.data.text_columns, self.length)

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
            tuning = {**TRAINING_DEFAULTS, "bf16": False, **self.recipe.training}
            args = _arguments({**tuning, "seed": run.seed, "output_dir": output})
            train_at_least(args, len(self.tuning))
            args.dataloader_pin_memory = False
            trainer = DefenseTrainer(
                load_classifier(self.suspect),
                args,
                train_dataset=self.tuning,
                eval_dataset=self.eval,
                processing_class=self.tokenizer,
                compute_metrics=compute_classification_metrics if args.eval_strategy != "no" else None,
                defense=defense,
                mixing_config=config,
                second_model=self.second,
            )
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            if defense.tunes:
                trainer.train()
            seconds = time.perf_counter() - started
            search = trainer.ratio_search
            measured = measure(trainer, self.test, self.attacks)
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
            variants["poisoned"] = poison(
                rows, Trigger(self.trigger), text_column=self.data.text_columns[-1], label_column="label",
                target=self.target, rate=RETUNE_RATE, seed=self.seed,
                reader=Reader(self.tokenizer, self.length, self.trigger), text_columns=self.data.text_columns,
            )  # fmt: skip
        results = {}
        for name, part in variants.items():
            model = copy.deepcopy(trainer.model)
            again = Trainer(model, args, train_dataset=self.encoded(part), processing_class=self.tokenizer)
            again.remove_callback(PrinterCallback)
            again.train()
            accuracy = measure(again, self.test, [])["accuracy"]
            rates = [replace(attack, repeats=attack.repeats[:1]).success(again) for attack in self.attacks]
            results[name] = {"accuracy": accuracy, "asr": {rate["trigger"]: rate["asr"] for rate in rates}}
        return results


def benign_floors(recipe: BenchRecipe, folder: Path) -> dict[str, dict[str, float]]:
    """Of a model trained on clean rows: `accuracy`, and `asr` for the trigger of each attack (of several the mean)."""
    known = known_floors(folder)
    of_trigger: dict[tuple[str | None, str | None], dict[str, float]] = {}  # which several attacks may share
    for attack, entry in recipe.attacks.items():
        suspect = Path(entry.get("suspect") or folder / "suspects" / f"{attack}-{recipe.model_seeds[0]}")
        if "suspect" not in entry and not (suspect / MANIFEST_NAME).is_file():
            continue
        key = _trigger(recipe, attack, suspect), entry.get("triggered_test_file")
        if attack not in known:
            known[attack] = of_trigger.get(key) or _benign_floor(recipe, folder, attack, suspect)
            write_text(folder / FLOORS_NAME, json.dumps(known) + "\n")
        of_trigger[key] = known[attack]
    return known


def known_floors(folder: Path) -> dict[str, dict[str, float]]:
    """Those of [`benign_floors`] that have been measured."""
    path = folder / FLOORS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _benign_floor(recipe: BenchRecipe, folder: Path, attack: str, suspect: Path) -> dict[str, float]:
    subject = _Subject(recipe, folder, Run(attack, recipe.model_seeds[0], "none", recipe.seeds[0]), suspect)
    clean = load_classifier(LocalModel(CLEAN, _suspect(recipe, folder, CLEAN, recipe.model_seeds[0])))
    bf16 = recipe.training.get("bf16", False)
    with predictor(clean, subject.tokenizer, disable_tqdm=True, bf16=bf16) as trainer:
        measured = measure(trainer, subject.test, subject.attacks)
    rates = [trigger["asr"] for trigger in measured["triggers"]]
    return {"accuracy": measured["accuracy"], "asr": sum(rates) / len(rates)} if rates else {}
