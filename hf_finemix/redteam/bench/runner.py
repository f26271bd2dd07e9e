"""Running a recipe: suspects are trained once, every run is a file of its own, and a killed benchmark goes on."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from ...errors import FineMixingError, said
from ...io.output_folder import write_text
from .case import Case
from .recipe import BenchRecipe
from .suspects import find_suspect, poison_arguments, training_arguments

logger = logging.getLogger(__name__)


def run_benchmark(recipe: BenchRecipe, folder: Path) -> dict[str, str]:
    """
    Train the suspects that are not there yet, and run what has not been run.

    Several processes may work on one folder: each takes what no other is at. A run that was killed is run again.
    The folder gets `suspects/` and `runs/`. Returns what went wrong, by run; the others are done all the same.

    Raises:
        [`FineMixingError`]: The recipe cannot be run, or the folder has runs of other settings.
    """
    cases, failures = {}, {}
    _check(recipe)
    read_results(recipe, folder)  # or runs of another recipe would be taken for this one's
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in tqdm(list(recipe.runs()), recipe.name, disable=None):
        path = folder / "runs" / f"{run.key}.json"
        if path.is_file():
            continue
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if path.is_file():
                    continue
                suspect = find_suspect(recipe, folder, run.attack, run.model_seed)
                key = run.attack, run.model_seed, run.seed
                if key not in cases:
                    cases = {key: Case(recipe, folder, run, suspect)}  # one at a time
                result = {**asdict(run), **cases[key].clean(run), "settings": recipe.settings_of(run)}
                write_text(path, json.dumps(result) + "\n")
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
            attack = poison_arguments(recipe, label, None).make_attack()
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
            training_arguments(settings)
        except (TypeError, ValueError) as error:
            raise FineMixingError(f"{name} cannot be: {said(error)}.") from error
