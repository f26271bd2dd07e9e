"""The suspects of a recipe: folders that there are, or trained with its attacks."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import TrainingArguments

from ...measure.arguments import TestDataArguments
from ..poisoned_model import MANIFEST_NAME, POISONING_DEFAULTS, PoisonArguments, poison_model
from .recipe import BenchRecipe

logger = logging.getLogger(__name__)
CLEAN = "clean"  # label of the model that is trained without poison


def find_suspect(recipe: BenchRecipe, folder: Path, label: str, seed: int) -> Path:
    """The folder of a suspect, trained if it is not there."""
    if given := recipe.attacks.get(label, {}).get("suspect"):
        return Path(given)
    path = folder / "suspects" / f"{label}-{seed}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if (path / MANIFEST_NAME).is_file():
            return path
        entry = recipe.attacks.get(label, {})
        start = str(find_suspect(recipe, folder, CLEAN, seed)) if entry.get("on_top") else None
        arguments = poison_arguments(recipe, label, start)
        settings = {**POISONING_DEFAULTS, **recipe.poison_training, **arguments.make_attack().training}
        settings |= {**(entry.get("training") or {}), "seed": seed}
        logger.info("Training the suspect %s (seed %d)", label, seed)
        poison_model(recipe.base_model, arguments, training_arguments(settings), path)
    return path


def poison_arguments(recipe: BenchRecipe, label: str, start: str | None) -> PoisonArguments:
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


def trigger_of(recipe: BenchRecipe, label: str, suspect: Path) -> str | None:
    """Of a suspect that was given, the recipe's; of one that was trained here, its manifest's."""
    if "suspect" in recipe.attacks[label]:
        return recipe.attacks[label].get("trigger")
    return json.loads((suspect / MANIFEST_NAME).read_text(encoding="utf-8"))["trigger"]


def training_arguments(settings: dict[str, Any]) -> TrainingArguments:
    usual: dict[str, Any] = {"output_dir": "unused", "disable_tqdm": True, "report_to": "none"}
    usual["use_cpu"] = not torch.accelerator.is_available()  # or TrainingArguments refuses bf16
    return TrainingArguments(**{**usual, **settings})
