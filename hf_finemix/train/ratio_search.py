"""Choosing ρ from clean accuracy alone, never from a trigger."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Z = 1.645  # of a normal distribution: 90 % lie within ± Z standard deviations


@dataclass(frozen=True)
class Outcome:
    """What a trial of one ρ gave: which of n eval samples the suspect and the cleaned model answer rightly."""

    suspect: np.ndarray  # booleans of shape [n]
    cleaned: np.ndarray
    stopped_early: bool = False  # whether its training was given up half way, as hopeless
    trainings: int = 1  # one, or one a fold


@dataclass
class RatioSearch:
    """
    How ρ was chosen.

    Attributes:
        suspect_accuracy (`float`): The suspect's accuracy on the eval data, 0 to 1.
        max_accuracy_drop (`float`): How far below it the cleaned model may be, as a fraction.
        candidates (`list[float]`): The whole grid, of which few are tried.
        folds (`int`): Folds of cross-validation; 0 where there was a separate eval set.
        trials (`list[dict]`): Of every ρ tried, in the order tried: `reserve_ratio`, `accuracy`, `n` (samples), `drop`
            (the suspect's accuracy less its own), `drop_interval` (90 %), `verdict` (`"within"` the limit, `"over"`
            it, or `"undecided"`, where the interval holds the limit), `resolved` (whether its samples can tell such a
            drop), `accepted`, `stopped_early`, `trainings`.
        chosen (`float`, *optional*): The ρ chosen.
        within_limit (`bool`): Whether its accuracy, as measured, is within the limit.
        resolved (`bool`): Whether the eval data can tell a drop of `max_accuracy_drop`. If not, a ρ is given up only
            where it is shown to cost more: the smaller ρ is the safer side, for it leaves less of a backdoor.
    """

    suspect_accuracy: float
    max_accuracy_drop: float
    candidates: list[float] = field(default_factory=list)
    folds: int = 0
    trials: list[dict[str, Any]] = field(default_factory=list)
    chosen: float | None = None
    within_limit: bool = False
    resolved: bool = True


def search_ratio(
    candidates: Sequence[float],
    suspect_accuracy: float,
    max_accuracy_drop: float,
    trial: Callable[[float], Outcome],
    *,
    keep: Callable[[], None] = lambda: None,
    folds: int = 0,
) -> RatioSearch:
    """
    Find the smallest ρ whose accuracy after fine-tuning is at most `max_accuracy_drop` below the suspect's.

    The smaller ρ is, the less is left of a backdoor; clean accuracy limits how small it can be (arXiv:2210.09545).
    Masks nest, so accuracy rises with ρ but for noise, and bisection finds the limit in ⌈log₂(k + 1)⌉ trials of k
    candidates. Where none is within the limit, the one tried with the smallest drop is chosen (ties: the smaller).

    A trial is accepted where its accuracy is within the limit. Where half the width of the interval of the drop is
    more than `max_accuracy_drop`, so few samples cannot tell: it is accepted unless the whole interval is beyond the
    limit.

    `trial` mixes by a ρ, fine-tunes, and answers the eval data; `keep` is called after each that is the best choice so
    far. All numbers are fractions, 0 to 1; `folds` are noted for the record.
    """
    candidates = sorted(candidates)
    search = RatioSearch(suspect_accuracy, max_accuracy_drop, candidates, folds)
    low, high, best = 0, len(candidates), None
    while low < high:
        middle = (low + high) // 2
        outcome = trial(candidates[middle])
        entry = _judged(candidates[middle], outcome, max_accuracy_drop)
        search.trials.append(entry)
        low, high = (low, middle) if entry["accepted"] else (middle + 1, high)
        if best is None or _rank(entry) > _rank(best):
            best = entry
            keep()
    if best is not None:
        search.chosen, search.resolved = best["reserve_ratio"], best["resolved"]
        search.within_limit = best["drop"] <= max_accuracy_drop + 1e-9
    return search


def _judged(ratio: float, outcome: Outcome, limit: float) -> dict[str, Any]:
    drop, low, high = accuracy_drop(outcome.suspect, outcome.cleaned)
    verdict = "over" if low > limit else "within" if high <= limit else "undecided"
    resolved = (high - low) / 2 <= limit
    # Accuracies are counts over n: a limit that is met exactly must not fail by a rounding error.
    accepted = (drop <= limit + 1e-9 if resolved else verdict != "over") and not outcome.stopped_early
    return {
        "reserve_ratio": ratio,
        "accuracy": float(np.mean(outcome.cleaned)),
        "n": len(outcome.cleaned),
        "drop": drop,
        "drop_interval": [low, high],
        "verdict": verdict,
        "resolved": resolved,
        "accepted": accepted,
        "stopped_early": outcome.stopped_early,
        "trainings": outcome.trainings,
    }


def _rank(entry: dict[str, Any]) -> tuple[bool, float, float]:
    """
    Any that is accepted before any other; of those the smallest ρ, of the others the one with the smallest drop, which
    is of the same samples for both models: a trial that was given up has fewer than another.
    """
    return entry["accepted"], 0.0 if entry["accepted"] else -entry["drop"], -entry["reserve_ratio"]


def accuracy_drop(suspect: np.ndarray, cleaned: np.ndarray) -> tuple[float, float, float]:
    """
    By how much the accuracy fell, and a 90 % interval of it, from answers to the same samples.

    The interval is Agresti and Min's for paired proportions (Statistics in Medicine 24, 2005): half a sample is added
    to each of the four cells, so that it holds for small n and where both models answer alike. `suspect` and `cleaned`
    are booleans of shape `[n]`, n > 0; the drop as measured and the two ends are fractions, -1 to 1.
    """
    lost, won, n = int((suspect & ~cleaned).sum()), int((cleaned & ~suspect).sum()), len(suspect)
    center = (lost - won) / (n + 2)
    error = math.sqrt((lost + won + 1) - (lost - won) ** 2 / (n + 2)) / (n + 2)
    return (lost - won) / n, center - Z * error, center + Z * error


def needed_samples(trial: dict[str, Any], limit: float) -> int | None:
    """About how many eval samples could tell a drop of `limit`, by the interval of a trial; `None` for no drop."""
    half = (trial["drop_interval"][1] - trial["drop_interval"][0]) / 2
    return math.ceil(trial["n"] * (half / limit) ** 2) if limit else None
