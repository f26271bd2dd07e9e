"""Choosing ρ from clean accuracy alone, never from a trigger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import FineMixingError

__all__ = ["AccuracyCounter", "RatioSearch", "predicted_classes", "search_ratio"]


@dataclass
class RatioSearch:
    """
    How ρ was chosen.

    Attributes:
        suspect_accuracy (`float`): The suspect's accuracy on the eval data, 0 to 1.
        max_accuracy_drop (`float`): How far below it the cleaned model may be, as a fraction.
        trials (`list[dict]`): `reserve_ratio` and `accuracy` of every ρ tried, in the order tried.
        chosen (`float`, *optional*): The ρ chosen.
        within_limit (`bool`): Whether its accuracy is within the limit; if not, no candidate's was.
    """

    suspect_accuracy: float
    max_accuracy_drop: float
    trials: list[dict[str, float]] = field(default_factory=list)
    chosen: float | None = None
    within_limit: bool = False


def search_ratio(
    candidates: Sequence[float],
    suspect_accuracy: float,
    max_accuracy_drop: float,
    trial: Callable[[float], float],
) -> RatioSearch:
    """
    Find the smallest ρ whose accuracy after fine-tuning is at most `max_accuracy_drop` below the suspect's.

    The smaller ρ is, the less is left of a backdoor; clean accuracy limits how small it can be (arXiv:2210.09545). The
    candidates are tried in rising order, and the first one within the limit ends the search. Where none is, the one
    with the best accuracy is chosen (ties: the smaller).

    Args:
        candidates (`Sequence[float]`): ρ to try, each in [0, 1].
        suspect_accuracy (`float`): Fraction, 0 to 1.
        max_accuracy_drop (`float`): Fraction, 0 to 1.
        trial (`Callable[[float], float]`): Mixes, fine-tunes and gives the accuracy on eval data, 0 to 1.
    """
    search = RatioSearch(suspect_accuracy, max_accuracy_drop)
    # Accuracies are counts over n: a limit that is met exactly must not fail by a rounding error.
    limit = suspect_accuracy - max_accuracy_drop - 1e-9
    for ratio in sorted(candidates):
        accuracy = trial(ratio)
        search.trials.append({"reserve_ratio": ratio, "accuracy": accuracy})
        if accuracy >= limit:
            search.chosen, search.within_limit = ratio, True
            return search
    best = max(search.trials, key=lambda tried: (tried["accuracy"], -tried["reserve_ratio"]))
    search.chosen = best["reserve_ratio"]
    return search


class AccuracyCounter:
    """A `compute_metrics` that counts right answers over any number of calls, with `batch_eval_metrics` or without."""

    def __init__(self):
        self.correct = self.total = 0

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        predictions, labels = _flat(prediction.predictions), _flat(prediction.label_ids)
        if labels.is_floating_point() or labels.shape != predictions.shape:
            raise FineMixingError(
                "reserve_ratio='auto' compares accuracies, and the labels of eval_dataset are no classes: give a "
                "fixed ρ."
            )
        counted = labels != -100
        self.correct += int((predictions == labels)[counted].sum())
        self.total += int(counted.sum())
        return {}


def _flat(values: Any) -> torch.Tensor:
    """One vector of an array, of a tensor on any device, or of one for each batch."""
    parts = values if isinstance(values, (list, tuple)) else [values]
    return torch.cat([torch.as_tensor(part).flatten().cpu() for part in parts])


def predicted_classes(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """The `preprocess_logits_for_metrics` that goes with it."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)
