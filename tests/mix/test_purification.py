import json
import math

import numpy as np
import pytest

from hf_finemix.mix.purification import TokenDrift, purification_scores, row_drift, rows_to_purify


def test_score_is_drift_over_log_frequency():
    suspect, base = (
        np.array([[3.0, 4.0], [0.0, 1.0], [5.0, 5.0]]),
        np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0]]),
    )
    drift = row_drift(suspect, base)
    assert drift.tolist() == [5.0, 1.0, 0.0]
    scores = purification_scores(drift, np.array([1e6, 0.0, 50.0]))
    # The count of a token that was never seen is taken as 20.
    assert scores.tolist() == pytest.approx([5 / math.log(1e6), 1 / math.log(20), 0.0])


def test_largest_scores_first_lower_id_first_among_equals():
    scores = np.array([1.0, 3.0, 2.0, 3.0])
    assert rows_to_purify(scores, 3) == [1, 3, 2]
    assert rows_to_purify(scores, 100) == [1, 3, 2, 0]
    assert rows_to_purify(scores, 0) == []


def test_exempt_and_unmoved_rows_are_never_purified():
    scores = np.array([9.0, 0.0, 2.0])
    assert rows_to_purify(scores, 3, exempt=[0, 17, -1]) == [2]
    assert scores[0] == 9.0


@pytest.fixture
def drift():
    delta, frequency = np.array([9.0, 1.0, 0.0, 3.0, 2.0]), np.array([1e6, 1e3, 5.0, 1e3, 0.0])
    return TokenDrift.measured(delta, frequency, {0, 99})


def test_ranks_leave_special_tokens_out(drift):
    assert [drift.rank(i) for i in (4, 3, 1, 2)] == [1, 2, 3, 4]
    assert drift.describe(4) == {"id": 4, "delta": 2.0, "frequency": 0.0, "score": pytest.approx(2 / math.log(20))}


def test_histogram_counts_every_token_that_moved(drift):
    histogram = drift.histogram()
    assert histogram["num_tokens"] == 4
    assert histogram["num_unmoved"] == 1
    counts = np.array(histogram["counts"])
    assert counts.shape == (40, 32)
    assert counts.sum() == 3
    assert histogram["frequency_edges"][0] == 20
    assert histogram["frequency_edges"][-1] == pytest.approx(1e3)
    assert counts[0].sum() == 1  # fewer than 20 count as 20
    assert counts[-1].sum() == 2
    assert json.loads(json.dumps(histogram, allow_nan=False)) == histogram


def test_one_row_far_out_does_not_press_all_others_into_one_bin():
    delta = np.append(np.random.default_rng(0).uniform(0.5, 1, 5000), 1000.0)
    histogram = TokenDrift(delta, np.full(5001, 100.0), delta).histogram()
    assert histogram["drift_edges"][-1] < 3
    assert (np.array(histogram["counts"]).sum(axis=0) > 0).sum() > 5


def test_histogram_of_embeddings_that_did_not_move():
    histogram = TokenDrift(np.zeros(3), np.ones(3), np.zeros(3)).histogram()
    assert histogram["num_unmoved"] == 3
    assert not np.any(histogram["counts"])
