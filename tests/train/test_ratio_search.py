import math

import numpy as np
import pytest

from hf_finemix.train.ratio_search import Outcome, accuracy_drop, needed_samples, search_ratio

N = 2000  # enough samples to tell two points


def answers(accuracy, n=N):
    """The first are right: two models differ in as few answers as they can."""
    return np.arange(n) < round(accuracy * n)


def run(accuracies, suspect, drop, n=N):
    tried, kept = [], []

    def trial(ratio):
        tried.append(ratio)
        return Outcome(answers(suspect, n), answers(accuracies[ratio], n))

    search = search_ratio(list(accuracies), suspect, drop, trial, keep=lambda: kept.append(tried[-1]))
    assert kept[-1] == search.chosen  # what was kept last is the one chosen
    return search, tried


GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.mark.parametrize("first_good", range(len(GRID)))
def test_bisection_finds_what_the_whole_grid_would_in_less_than_half_the_trials(first_good):
    accuracies = {ratio: 0.88 if i >= first_good else 0.80 for i, ratio in enumerate(GRID)}
    search, tried = run(accuracies, 0.89, 0.02)
    assert (search.chosen, search.within_limit, search.resolved) == (GRID[first_good], True, True)
    assert len(tried) <= math.ceil(math.log2(len(GRID) + 1)) <= len(GRID) / 2
    assert search.candidates == GRID


def test_every_trial_is_told():
    search, tried = run({0.3: 0.9, 0.1: 0.7, 0.2: 0.87}, 0.88, 0.02)
    assert tried == [0.2, 0.1]
    assert search.chosen == 0.2
    first, second = search.trials
    assert (first["accuracy"], first["n"], first["accepted"], first["verdict"]) == (0.87, N, True, "within")
    assert first["drop"] == pytest.approx(0.01)
    assert first["drop_interval"][0] < 0.01 < first["drop_interval"][1] <= 0.02
    assert (second["accepted"], second["verdict"], second["stopped_early"]) == (False, "over", False)


def test_a_limit_met_exactly_is_met():
    search, _ = run({0.1: 0.8, 0.2: 1.0}, 0.9, 0.1)
    assert search.chosen == 0.1
    search, _ = run({0.1: 711 / 808, 0.2: 1.0}, 727 / 808, 16 / 808, n=808)
    assert search.chosen == 0.1


@pytest.mark.parametrize("accuracies", [{0.1: 0.5, 0.2: 0.6, 0.3: 0.6, 0.4: 0.6}])
def test_without_any_within_the_limit_the_best_is_chosen(accuracies):
    search, tried = run(accuracies, 0.9, 0.02)
    assert tried == [0.3, 0.4]
    assert (search.chosen, search.within_limit) == (0.3, False)


def test_few_samples_take_the_smaller_ratio_unless_it_is_shown_to_cost_more():
    # 64 samples: 3 answers lost are 4.7 points, which may as well be 2; 30 lost may not.
    search, _ = run({0.1: 29 / 64, 0.2: 56 / 64, 0.3: 59 / 64}, 59 / 64, 0.02, n=64)
    assert (search.chosen, search.resolved, search.within_limit) == (0.2, False, False)
    verdicts = {trial["reserve_ratio"]: trial["verdict"] for trial in search.trials}
    assert verdicts == {0.2: "undecided", 0.1: "over"}
    assert needed_samples(search.trials[0], 0.02) > 64
    # Enough samples hold it to the limit.
    search, _ = run({0.1: 29 / 64, 0.2: 56 / 64, 0.3: 59 / 64}, 59 / 64, 0.02, n=6400)
    assert (search.chosen, search.resolved) == (0.3, True)


def test_a_trial_that_was_given_up_is_never_chosen_before_another():
    def trial(ratio):
        return Outcome(answers(0.9), answers(0.9), stopped_early=ratio < 0.3)

    search = search_ratio([0.1, 0.2, 0.3], 0.9, 0.02, trial)
    assert search.chosen == 0.3
    assert [t["accepted"] for t in search.trials] == [False, True]


def test_interval_covers_the_true_drop():
    """Of a drop of 3 points, with 10 % of the answers changed, in nine of ten draws (by Agresti and Min's method)."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        draw = rng.random(200)
        suspect, cleaned = draw < 0.9, (draw < 0.835) | (draw > 0.965)
        _, low, high = accuracy_drop(suspect, cleaned)
        hits += low <= 0.03 <= high
    assert 870 <= hits <= 950


def test_interval_of_equal_answers_has_a_width():
    drop, low, high = accuracy_drop(answers(0.9, 20), answers(0.9, 20))
    assert drop == 0
    assert low < -0.05
    assert high > 0.05


def test_of_trials_that_all_cost_too_much_the_smallest_drop_is_best():
    """Not the largest accuracy: one that was given up has it of other, easier samples than one that ended."""
    given_up = Outcome(np.ones(16, bool), answers(0.75, 16), stopped_early=True)
    ended = Outcome(answers(0.81, 64), answers(0.67, 64))
    search = search_ratio([0.5, 0.8, 0.9], 0.81, 0.02, lambda ratio: given_up if ratio == 0.8 else ended)
    assert [trial["reserve_ratio"] for trial in search.trials] == [0.8, 0.9]
    assert (search.chosen, search.within_limit) == (0.9, False)
