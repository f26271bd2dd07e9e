"""What Fine-mixing is compared with: one interface (suspect, base, clean data → model), one defense a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import FineMixingError

if TYPE_CHECKING:
    from .defense import Defense

__all__ = ["DEFENSES", "find_defense"]

# Name → the module and the class, and what it sets of it. Imported when asked for: they load torch.
DEFENSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "none": ("defense", "Defense", {"tunes": False}),
    "fine_tuning": ("defense", "Defense", {}),
    "matched_floor": ("mixing", "Mixing", {"ratio": 0.0}),
    "fine_pruning": ("fine_pruning", "FinePruning", {}),
    "soft_mixing": ("mixing", "Mixing", {"strategy": "average"}),
    "dare": ("dare", "Dare", {}),
    "fine_purifying": ("mixing", "Mixing", {"strategy": "fisher"}),
    "wag": ("wag", "WeightAveraging", {}),
    "fine_mixing": ("mixing", "Mixing", {"strategy": "random"}),
}


def find_defense(name: str, **settings: Any) -> "Defense":
    """
    The defense of a name; `"NAME+epur"` is the same after E-PUR.

    Raises:
        [`FineMixingError`]: There is no such defense, or E-PUR has nothing to do in it.
    """
    plain, plus, epur = name.partition("+")
    if plain not in DEFENSES or (plus and epur != "epur"):
        raise FineMixingError(f"there is no defense {name!r}: choose one of {', '.join(DEFENSES)}, or it+epur.")
    if plus and plain in ("none", "matched_floor"):
        raise FineMixingError(f"{name}: E-PUR has nothing to do in {plain}.")
    module, kind, defaults = DEFENSES[plain]
    made = getattr(import_module(f"{__name__}.{module}"), kind)
    try:
        return made(**{"name": name, **defaults, **settings, "purify": bool(plus)})
    except TypeError as error:
        raise FineMixingError(f"the defense {name!r} does not take what it was given: {error}.") from None
