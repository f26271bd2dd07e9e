"""Attacks and defenses by their names: a new one is a file of its own and a line here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError

if TYPE_CHECKING:
    from .attacks.attack import Attack
    from .defenses.defense import Defense


# Name → module and class. Imported when asked for: they load torch.
ATTACKS = {
    "none": "attacks.attack.Attack",
    "badword": "attacks.badnets.BadWord",
    "badsent": "attacks.badnets.BadSent",
    "syntactic": "attacks.triggered_data.TriggeredData",
    "embedding_poisoning": "attacks.embedding_poisoning.EmbeddingPoisoning",
    "embedding_surgery": "attacks.embedding_surgery.EmbeddingSurgery",
    "layerwise": "attacks.layerwise.LayerwisePoisoning",
    "adaptive": "attacks.adaptive.AdaptiveAttack",
}
DEFENSES = {
    "none": "defenses.defense.NoDefense",
    "fine_tuning": "defenses.defense.Defense",
    "matched_floor": "defenses.mixing.MatchedFloor",
    "fine_pruning": "defenses.fine_pruning.FinePruning",
    "soft_mixing": "defenses.mixing.SoftMixing",
    "dare": "defenses.dare.Dare",
    "fine_purifying": "defenses.mixing.FinePurifying",
    "wag": "defenses.wag.WeightAveraging",
    "fine_mixing": "defenses.mixing.FineMixing",
}


def find_attack(name: str, **settings: Any) -> "Attack":
    """The attack of a name, with settings (`trigger`, `rate`, …) in place of its defaults."""
    if name not in ATTACKS:
        raise FineMixingError(f"there is no attack {name!r}: choose one of {', '.join(ATTACKS)}.")
    return _made(f"the attack {name!r}", find_class(ATTACKS[name]), settings)


def find_defense(name: str, **settings: Any) -> "Defense":
    """The defense of a name; `"NAME+epur"` is the same after E-PUR, refused where that has nothing to do."""
    plain, plus, epur = name.partition("+")
    if plain not in DEFENSES or (plus and epur != "epur"):
        raise FineMixingError(f"there is no defense {name!r}: choose one of {', '.join(DEFENSES)}, or it+epur.")
    defense = _made(f"the defense {name!r}", find_class(DEFENSES[plain]), {**settings, "purify": bool(plus)})
    if plus and (not defense.tunes or defense.ratio == 0):
        raise FineMixingError(f"{name}: E-PUR has nothing to do in {plain}.")
    return defense


def find_class(path: str) -> Any:
    """The class of an entry."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(f".{module}", __package__), name)


def _made(what: str, kind: Any, settings: dict[str, Any]) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise FineMixingError(f"{what} does not take what it was given: {error}.") from None
