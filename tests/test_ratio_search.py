import pytest

from hf_finemix.ratio_search import search_ratio


def run(accuracies, suspect, drop):
    tried = []

    def trial(ratio):
        tried.append(ratio)
        return accuracies[ratio]

    return search_ratio(list(accuracies), suspect, drop, trial), tried


def test_smallest_ratio_within_the_limit_ends_the_search():
    search, tried = run({0.3: 0.9, 0.1: 0.7, 0.2: 0.86}, 0.88, 0.02)
    assert tried == [0.1, 0.2]
    assert (search.chosen, search.within_limit) == (0.2, True)
    assert search.trials == [{"reserve_ratio": 0.1, "accuracy": 0.7}, {"reserve_ratio": 0.2, "accuracy": 0.86}]


def test_a_limit_met_exactly_is_met():
    search, _ = run({0.1: 0.9 - 0.1, 0.2: 1.0}, 0.9, 0.1)
    assert search.chosen == 0.1
    search, _ = run({0.1: 711 / 808, 0.2: 1.0}, 711 / 808 + 0.02, 0.02)
    assert search.chosen == 0.1


@pytest.mark.parametrize("accuracies", [{0.1: 0.5, 0.2: 0.6, 0.3: 0.6, 0.4: 0.4}])
def test_without_any_within_the_limit_the_best_is_chosen(accuracies):
    search, tried = run(accuracies, 0.9, 0.02)
    assert tried == list(accuracies)
    assert (search.chosen, search.within_limit) == (0.2, False)
