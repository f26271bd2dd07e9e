"""Choosing ρ from clean accuracy alone, never from a trigger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["RatioSearch", "search_ratio"]


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
