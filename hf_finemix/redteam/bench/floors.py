"""What a clean model does with each trigger of a recipe: the floor that no defense needs to get below."""

import json
from pathlib import Path

from ...io.folder import LocalModel
from ...io.loading import load_classifier
from ...io.output_folder import write_text
from ...measure.attack_success import predictor
from ..poisoned_model import MANIFEST_NAME
from .case import Case
from .recipe import BenchRecipe, Run
from .suspects import CLEAN, find_suspect, trigger_of

FLOORS_NAME = "benign_floors.json"


def benign_floors(recipe: BenchRecipe, folder: Path) -> dict[str, dict[str, float]]:
    """Of a model trained on clean rows: `accuracy`, and `asr` for the trigger of each attack (of several the mean)."""
    known = known_floors(folder)
    of_trigger: dict[tuple[str | None, str | None], dict[str, float]] = {}  # which several attacks may share
    for attack, entry in recipe.attacks.items():
        suspect = Path(entry.get("suspect") or folder / "suspects" / f"{attack}-{recipe.model_seeds[0]}")
        if "suspect" not in entry and not (suspect / MANIFEST_NAME).is_file():
            continue
        key = trigger_of(recipe, attack, suspect), entry.get("triggered_test_file")
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
    case = Case(recipe, folder, Run(attack, recipe.model_seeds[0], "none", recipe.seeds[0]), suspect)
    clean = load_classifier(LocalModel(CLEAN, find_suspect(recipe, folder, CLEAN, recipe.model_seeds[0])))
    bf16 = recipe.training.get("bf16", False)
    with predictor(clean, case.tokenizer, disable_tqdm=True, bf16=bf16) as trainer:
        measured = case.task.measure(trainer, case.test, case.attacks)
    rates = [trigger["asr"] for trigger in measured["triggers"]]
    return {"accuracy": measured["accuracy"], "asr": sum(rates) / len(rates)} if rates else {}
