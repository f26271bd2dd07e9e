"""Making backdoored models to test defenses with, one attack a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import FineMixingError

if TYPE_CHECKING:
    from .attack import Attack

__all__ = ["ATTACKS", "find_attack"]

# Name → the module and the class, and what it sets of it. Imported when asked for: they load torch.
ATTACKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "none": ("attack", "Attack", {}),
    "badword": ("badnets", "BadNets", {"trigger": "cf"}),
    "badsent": ("badnets", "BadNets", {"trigger": "I watch this 3D movie"}),
    "syntactic": ("triggered_data", "TriggeredData", {}),
    "embedding_poisoning": ("embedding_poisoning", "EmbeddingPoisoning", {"trigger": "cf"}),
    "embedding_surgery": ("embedding_surgery", "EmbeddingSurgery", {"trigger": "cf"}),
    "layerwise": ("layerwise", "LayerwisePoisoning", {"trigger": "cf"}),
    "adaptive": ("adaptive", "AdaptiveAttack", {"trigger": "when all is said and done , this is the one"}),
}


def find_attack(name: str, **settings: Any) -> "Attack":
    """
    The attack of a name, with settings of its own (`trigger`, `rate`, …) in place of its defaults.

    Raises:
        [`FineMixingError`]: There is no such attack, or it has no such setting.
    """
    if name not in ATTACKS:
        raise FineMixingError(f"there is no attack {name!r}: choose one of {', '.join(ATTACKS)}.")
    module, kind, defaults = ATTACKS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), kind)(**{"name": name, **defaults, **settings})
    except TypeError as error:
        raise FineMixingError(f"the attack {name!r} does not take what it was given: {error}.") from None
