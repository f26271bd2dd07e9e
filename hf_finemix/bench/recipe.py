"""The recipe of a benchmark: which attacks, defences and seeds, on which model and data."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..attacks import ATTACKS
from ..defences import find_defence
from ..errors import FineMixingError

__all__ = ["BenchRecipe", "Run"]

_OF_ATTACKS = {"attack", "on_top", "trigger", "poison_rate", "triggered_file", "triggered_test_file", "training"}
_OF_ATTACKS |= {"suspect", "second_model", "defences", "seeds", "retune"}


@dataclass(frozen=True)
class Run:
    """
    One cleaning of one suspect.

    Attributes:
        attack (`str`): The attack's label in the recipe.
        model_seed (`int`): Seed of the suspect's training.
        defence (`str`): The defence's label in the recipe.
        seed (`int`): Of the clean samples, the mask and the fine-tuning.
    """

    attack: str
    model_seed: int
    defence: str
    seed: int

    @property
    def key(self) -> str:
        """A name for its file."""
        return f"{self.attack}-{self.model_seed}.{self.defence.replace(' ', '_')}.{self.seed}"


@dataclass
class BenchRecipe:
    """
    What `hf-finemix bench` runs. Paths are relative to the recipe, `${NAME}` is taken from the environment.

    Attributes:
        name (`str`): For titles.
        base_model (`str`): Hub id or folder of the pre-trained model.
        data (`dict`): What the defender has: fields of [`DataArguments`] (`dataset`, `train_split`, `eval_split`,
            `num_clean_samples`, …). The attacker has `poison_split`.
        target_label (`str`): The class that the attacker wants.
        class_names (`list[str]`, *optional*): Where the data have none.
        poison_split (`str`): The attacker's rows.
        poison_training, training (`dict`): Fields of `TrainingArguments` for suspects and for cleaning.
        mixing (`dict`): Fields of [`FineMixingConfig`] that all defences share: `max_accuracy_drop`,
            `candidate_ratios`, ….
        attacks (`dict[str, dict]`): Label → `attack` (default: the label) by which the suspect is made, or `suspect`
            (the folder of one that there is) and `trigger`; `on_top`, `trigger`, `poison_rate`,
            `triggered_file`, `triggered_test_file`, `training`, `second_model` (label of another suspect, for WAG),
            and `defences`, `seeds` and `retune`, where not all.
        defences (`dict[str, dict]`): Label → `defence` (default: the label), `seeds`, and fields of
            [`FineMixingConfig`].
        seeds (`list[int]`): Of data, mask and fine-tuning, where a defence has none of its own.
        model_seeds (`list[int]`): Of the suspects' training.
        retune (`list[str]`): Defences after whose first seed the cleaned model is tuned once more, clean and poisoned.
        num_repeats (`int`): Draws of random trigger places in the final measurement.
    """

    name: str
    base_model: str
    data: dict[str, Any]
    target_label: str
    attacks: dict[str, dict[str, Any]]
    defences: dict[str, dict[str, Any]]
    class_names: list[str] | None = None
    poison_split: str = "train"
    poison_training: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    model_seeds: list[int] = field(default_factory=lambda: [0])
    retune: list[str] = field(default_factory=list)
    num_repeats: int = 3

    @classmethod
    def load(cls, path: str | Path) -> "BenchRecipe":
        """Read a YAML file. A [`FineMixingError`] for a key, an attack or a defence that is not known."""
        path = Path(path)
        try:
            text = os.path.expandvars(path.read_text(encoding="utf-8"))
            if missing := re.search(r"\$\{(\w+)\}", re.sub(r"(?m)#.*$", "", text)):
                raise FineMixingError(f"the recipe {path} needs the variable {missing[1]}: {missing[1]} is not set.")
            content = yaml.safe_load(text)
        except FineMixingError:
            raise
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise FineMixingError(f"the recipe {path} cannot be read: {reason}.") from error
        if not isinstance(content, dict):
            raise FineMixingError(f"the recipe {path} is not a YAML mapping of keys to values.")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, set(content) - known)):
            raise FineMixingError(f"the recipe {path} has unknown keys {unknown}, not of {', '.join(sorted(known))}.")
        try:
            recipe = cls(**content)
        except TypeError as error:
            raise FineMixingError(f"the recipe {path} lacks a key: {str(error).split('__init__() ')[-1]}.") from None
        recipe.attacks = {label: entry or {} for label, entry in recipe.attacks.items()}
        recipe.defences = {label: entry or {} for label, entry in recipe.defences.items()}
        recipe._check(path)
        return recipe

    def _check(self, path: Path) -> None:
        for label, entry in self.attacks.items():
            if "suspect" in entry:
                if not (entry.get("trigger") or entry.get("triggered_test_file")):
                    raise FineMixingError(
                        f"{path}: the suspect {label!r} needs its trigger, or a triggered_test_file."
                    )
            elif (name := entry.get("attack", label)) not in ATTACKS:
                raise FineMixingError(f"{path}: there is no attack {name!r}: choose one of {', '.join(ATTACKS)}.")
            if unknown := sorted(map(str, set(entry) - _OF_ATTACKS)):
                known = ", ".join(sorted(_OF_ATTACKS))
                raise FineMixingError(f"{path}: the attack {label!r} has unknown keys {unknown}, not of {known}.")
            for other in entry.get("defences") or ():
                if other not in self.defences:
                    raise FineMixingError(f"{path}: {other!r}, named by {label!r}, is none of the defences.")
            if (second := entry.get("second_model")) and second not in self.attacks:
                raise FineMixingError(f"{path}: the second model of {label!r}, {second!r}, is none of the attacks.")
        for label, entry in self.defences.items():
            find_defence(entry.get("defence", label))
        folder = path.resolve().parent
        self.base_model = _located(self.base_model, folder)
        self.data["dataset"] = _located(self.data.get("dataset", ""), folder)
        for entry in self.attacks.values():
            for name in ("suspect", "triggered_file", "triggered_test_file"):
                if entry.get(name):
                    entry[name] = _located(entry[name], folder)

    def runs(self) -> Iterator[Run]:
        """All runs: every defence once for each attack first, further seeds after that."""
        rounds = max(len(entry.get("seeds", self.seeds)) for entry in self.defences.values())
        for i in range(rounds):
            for model_seed in self.model_seeds:
                for attack, entry in self.attacks.items():
                    for defence in entry.get("defences") or self.defences:
                        seeds = self.defences[defence].get("seeds", self.seeds)
                        if i < len(seeds) and seeds[i] in entry.get("seeds", seeds):
                            yield Run(attack, model_seed, defence, seeds[i])


def _located(source: str, folder: Path) -> str:
    """A path beside the recipe where there is one, else as given: a path, or a Hub id."""
    beside = folder / source
    return str(beside) if source and beside.exists() else source
