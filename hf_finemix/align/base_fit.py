"""How sure the weights make us that a base is the suspect's own."""

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from ..errors import AlignmentError, FineMixingError
from ..hub.lineage import BaseClaim
from ..io.folder import LocalModel
from .drift import TensorDrift, drift_by_layer

logger = logging.getLogger(__name__)


# Distance of a layer from the base's, ‖s - b‖₂ / ‖b‖₂, after fine-tuning: 0.01 to 0.03 in the bodies of MiniLM models
# that were trained on SST-2 in full, 0.25 in their poolers. Ten times the larger of the first is no longer usual.
USUAL_DISTANCE = 0.25


@dataclass(frozen=True)
class BaseFit:
    """How far a suspect is from its base."""

    sure: bool  # whether that is as fine-tuning leaves it
    median_distance: float  # median over the layers of ‖s - b‖₂ / ‖b‖₂
    why: str  # the same in words


def judge_base(
    claim: BaseClaim, drift: Mapping[str, TensorDrift], matrices: Collection[str], fitting: tuple[int, int]
) -> BaseFit:
    """
    Say how sure the weights make us of a base, in the log, and refuse a doubtful one that only the suspect names.

    `drift` is of the tensors that both have, `matrices` names those that count; `fitting` is how many of the suspect's
    tensors fit by name and shape, and how many it has. Doubtful is a base from which the layers are further
    than fine-tuning leaves them, or that has the suspect's own weights.
    """
    layers = drift_by_layer({name: value for name, value in drift.items() if name in matrices})
    distances = sorted(value for value in layers.values() if value is not None and math.isfinite(value))
    middle = median(distances) if distances else 0.0
    sure = bool(distances) and middle <= USUAL_DISTANCE
    span = f"{distances[0]:.2g} to {distances[-1]:.2g}" if distances else "nothing"
    why = (
        f"{fitting[0]} of {fitting[1]} tensors fit by name and shape, layers are {span} of their norm away (median "
        f"{middle:.2g}; fine-tuning leaves up to {USUAL_DISTANCE:g})"
    )
    if distances and not distances[-1] and not claim.by_user:
        raise AlignmentError(
            f"the base {claim.id}, named by {claim.named_by}, is the suspect itself: give --base-model."
        )
    if not sure and not claim.by_user:
        raise AlignmentError(
            f"the base {claim.id}, named by {claim.named_by}, is doubtful: {why}. If you know that it is right, give "
            f"--base-model {claim.id}."
        )
    if not claim.by_user:
        logger.info("The base %s fits: %s.", claim.id, why)
    elif not sure:
        logger.warning("The base %s is doubtful: %s. Is it the one that was fine-tuned?", claim.id, why)
    return BaseFit(sure, middle, why)


def check_pretrained(base: LocalModel, claim: BaseClaim, drifts: Iterable[TensorDrift], *, tuned: bool = True) -> None:
    """A base with the suspect's head may be the suspect itself, or, where a head says that it is `tuned`, a sister."""
    if not any(drift.delta for drift in drifts):
        raise FineMixingError(f"the base {base.id} has the suspect's own weights: give its pre-trained base.")
    if not tuned:
        return
    if not claim.by_user:
        raise FineMixingError(
            f"the base {base.id}, named by {claim.named_by}, has a classifier head too: it is fine-tuned itself. Give "
            "its pre-trained base (--base-model)."
        )
    logger.warning("The base %s has a classifier head too: is it pre-trained only? Its head is mixed in.", base.id)
