"""The recipe of a benchmark: which attacks, defenses and seeds, on which model and data."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...config import FineMixingConfig
from ...errors import FineMixingError
from ...io.recipe_file import read_recipe, typed
from ...measure.arguments import DataArguments
from ..registry import ATTACKS, find_attack, find_defense

_OF_ATTACKS = {"attack", "on_top", "trigger", "poison_rate", "triggered_file", "triggered_test_file", "training"}
_OF_ATTACKS |= {"suspect", "second_model", "defenses", "seeds", "retune"}
_TEXTS_OF_ATTACKS = dict.fromkeys(_OF_ATTACKS - {"poison_rate", "training", "seeds"}, str) | {"on_top": bool}
_OF_DEFENSES = {"defense", "seeds"}
_OF_DATA = {f.name for f in fields(DataArguments)} - {"sample_seed"}
_OF_MIXING = {f.name for f in fields(FineMixingConfig)} - {"strategy", "purify_embeddings"}  # the defense's own
_FILES = ("suspect", "triggered_file", "triggered_test_file")


@dataclass(frozen=True)
class Run:
    """One cleaning of one suspect; attack and defense are labels of the recipe."""

    attack: str
    model_seed: int  # of the suspect's training
    defense: str
    seed: int  # of the clean samples, the mask and the fine-tuning

    @property
    def key(self) -> str:
        """A name for its file."""
        return f"{self.attack}-{self.model_seed}.{self.defense.replace(' ', '_')}.{self.seed}"


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
        mixing (`dict`): Fields of [`FineMixingConfig`] that all defenses share: `max_accuracy_drop`,
            `candidate_ratios`, ….
        attacks (`dict[str, dict]`): Label → `attack` (default: the label) by which the suspect is made, or `suspect`
            (the folder of one that there is) and `trigger`; `on_top`, `trigger`, `poison_rate`,
            `triggered_file`, `triggered_test_file`, `training`, `second_model` (label of another suspect, for WAG),
            and `defenses`, `seeds` and `retune`, where not all.
        defenses (`dict[str, dict]`): Label → `defense` (default: the label), `seeds`, and fields of
            [`FineMixingConfig`].
        seeds (`list[int]`): Of data, mask and fine-tuning, where a defense has none of its own.
        model_seeds (`list[int]`): Of the suspects' training.
        retune (`list[str]`): Defenses after whose first seed the cleaned model is tuned once more, clean and poisoned.
        num_repeats (`int`): Draws of random trigger places in the final measurement.
    """

    name: str
    base_model: str
    data: dict[str, Any]
    target_label: str
    attacks: dict[str, dict[str, Any]]
    defenses: dict[str, dict[str, Any]]
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
        """Read a YAML file. A [`FineMixingError`] for a key, an attack or a defense that is not known."""
        path = Path(path)
        written = read_recipe(path, expand=True)
        _check_keys(f"the recipe {path}", written, {f.name for f in fields(cls)})
        content = _typed(written, {f.name: f.type for f in fields(cls)})
        if "data" in written:
            content["data"] = _typed(written["data"], {f.name: f.type for f in fields(DataArguments)})
        if isinstance(attacks := written.get("attacks"), dict):
            content["attacks"] = {str(label): _typed(entry, _TEXTS_OF_ATTACKS) for label, entry in attacks.items()}
        try:
            recipe = cls(**content)
        except TypeError as error:
            raise FineMixingError(f"the recipe {path} lacks a key: {str(error).split('__init__() ')[-1]}.") from None
        recipe._normalize(path)
        recipe._check(path)
        recipe._locate(path.resolve().parent)
        return recipe

    def _normalize(self, path: Path) -> None:
        """Mappings for entries without settings; an error for what is of another kind."""
        for f in fields(self):
            value = getattr(self, f.name)
            kind = next(kind for kind in (dict, list, int, str) if kind.__name__ in str(f.type))
            if not isinstance(value, kind) and not (value is None and f.default is None):
                written = {dict: "a mapping", list: "a list", int: "a number", str: "a text"}[kind]
                raise FineMixingError(f"{path}: {f.name} is {value!r}, not {written}.")
        for name in ("attacks", "defenses"):
            entries = {label: entry or {} for label, entry in getattr(self, name).items()}
            if not entries or not all(isinstance(entry, dict) for entry in entries.values()):
                raise FineMixingError(f"{path}: {name} must map labels to settings, one at least.")
            setattr(self, name, entries)

    def _check(self, path: Path) -> None:
        _check_keys(f"{path}: data", self.data, _OF_DATA)
        _check_keys(f"{path}: mixing", self.mixing, _OF_MIXING)
        for label, entry in self.attacks.items():
            if "suspect" in entry:
                if not (entry.get("trigger") or entry.get("triggered_test_file")):
                    raise FineMixingError(
                        f"{path}: the suspect {label!r} needs its trigger, or a triggered_test_file."
                    )
            elif (name := entry.get("attack", label)) not in ATTACKS:
                raise FineMixingError(f"{path}: there is no attack {name!r}: choose one of {', '.join(ATTACKS)}.")
            _check_keys(f"{path}: the attack {label!r}", entry, _OF_ATTACKS)
            for other in entry.get("defenses") or ():
                if other not in self.defenses:
                    raise FineMixingError(f"{path}: {other!r}, named by {label!r}, is none of the defenses.")
            _check_second_model(self, path, label)
        for label, entry in self.defenses.items():
            find_defense(entry.get("defense", label))
            _check_keys(f"{path}: the defense {label!r}", entry, _OF_MIXING | _OF_DEFENSES)
            try:
                FineMixingConfig(**self.mixing_of(label))
            except FineMixingError as error:
                raise FineMixingError(f"{path}: the defense {label!r}: {error}") from None

    def _locate(self, folder: Path) -> None:
        self.base_model = _located(self.base_model, folder)
        self.data["dataset"] = _located(self.data.get("dataset", ""), folder)
        for entry in self.attacks.values():
            for name in _FILES:
                if entry.get(name):
                    entry[name] = _located(entry[name], folder)

    def mixing_of(self, defense: str) -> dict[str, Any]:
        """Fields of [`FineMixingConfig`] for a defense: those that all share, and its own."""
        own = {name: value for name, value in self.defenses[defense].items() if name not in _OF_DEFENSES}
        return {**self.mixing, **own}

    def settings_of(self, run: Run) -> dict[str, Any]:
        """All that its result depends on, for a later run to tell whether it is still that; of paths the last name."""
        attack, defense = self.attacks[run.attack], self.defenses[run.defense]
        whole = ("target_label", "poison_split", "poison_training", "training", "mixing", "num_repeats")
        return {
            "base_model": Path(self.base_model).name,
            "data": {**self.data, "dataset": Path(self.data["dataset"]).name},
            "attack": {
                name: Path(value).name if name in _FILES else value
                for name, value in attack.items()
                if name not in ("defenses", "seeds", "retune")
            },
            "defense": {name: value for name, value in defense.items() if name != "seeds"},
            **{name: getattr(self, name) for name in whole},
        }

    def runs(self) -> Iterator[Run]:
        """All runs: every defense once for each attack first, further seeds after that."""
        rounds = max(len(entry.get("seeds", self.seeds)) for entry in self.defenses.values())
        for i in range(rounds):
            for model_seed in self.model_seeds:
                for attack, entry in self.attacks.items():
                    for defense in entry.get("defenses") or self.defenses:
                        seeds = self.defenses[defense].get("seeds", self.seeds)
                        if i < len(seeds) and seeds[i] in entry.get("seeds", seeds):
                            yield Run(attack, model_seed, defense, seeds[i])


def _check_second_model(recipe: BenchRecipe, path: Path, label: str) -> None:
    """WAG needs a second model, and one whose trigger is another one."""
    entry, known = recipe.attacks[label], recipe.defenses
    second = entry.get("second_model")
    if second is None:
        names = {known[name].get("defense", name) for name in entry.get("defenses") or known}
        if "wag" in {name.partition("+")[0] for name in names}:
            raise FineMixingError(f"{path}: the attack {label!r} needs a second_model, which wag averages it with.")
    elif second not in recipe.attacks:
        raise FineMixingError(f"{path}: the second model of {label!r}, {second!r}, is none of the attacks.")
    elif (trigger := _trigger(recipe, label)) and trigger == _trigger(recipe, second):
        raise FineMixingError(
            f"{path}: the second model of {label!r} has the same trigger {trigger!r}, which no average removes: name "
            "another attack."
        )


def _trigger(recipe: BenchRecipe, label: str) -> str | None:
    """Of an attack, its own or the usual one."""
    entry = recipe.attacks[label]
    if "trigger" in entry or "suspect" in entry:
        return entry.get("trigger")
    return find_attack(entry.get("attack", label)).trigger


def _check_keys(what: str, given: dict[Any, Any], known: set[str]) -> None:
    if unknown := sorted(map(str, set(given) - known)):
        raise FineMixingError(f"{what} has unknown keys {unknown}, not of {', '.join(sorted(known))}.")


def _typed(content: Any, kinds: dict[str, Any]) -> Any:
    """A mapping of the recipe with the values that its fields want."""
    if not isinstance(content, dict):
        return typed(content)
    return {str(name): typed(value, kinds.get(name)) for name, value in content.items()}


def _located(source: str, folder: Path) -> str:
    """A path beside the recipe where there is one, else as given: a path, or a Hub id."""
    beside = folder / source
    return str(beside) if source and beside.exists() else source
