import math

import numpy as np
import pytest
import torch

from hf_finemix.purification import purification_scores, row_drift, rows_to_purify


def test_score_is_drift_over_log_frequency():
    suspect, base = (
        torch.tensor([[3.0, 4.0], [0.0, 1.0], [5.0, 5.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0]]),
    )
    drift = row_drift(suspect, base)
    assert drift.tolist() == [5.0, 1.0, 0.0]
    scores = purification_scores(drift, np.array([1e6, 0.0, 50.0]))
    # The count of a token that was never seen is taken as 20.
    assert scores.tolist() == pytest.approx([5 / math.log(1e6), 1 / math.log(20), 0.0])


def test_half_precision_is_no_obstacle():
    base = torch.randn(4, 8).half()
    suspect = (base.float() + 0.01).half()
    assert torch.allclose(row_drift(suspect, base), (suspect.double() - base.double()).norm(dim=1), rtol=1e-6)


def test_largest_scores_first_lower_id_first_among_equals():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0], dtype=torch.float64)
    assert rows_to_purify(scores, 3) == [1, 3, 2]
    assert rows_to_purify(scores, 100) == [1, 3, 2, 0]
    assert rows_to_purify(scores, 0) == []


def test_exempt_and_unmoved_rows_are_never_purified():
    scores = torch.tensor([9.0, 0.0, 2.0], dtype=torch.float64)
    assert rows_to_purify(scores, 3, exempt=[0, 17, -1]) == [2]
    assert scores[0] == 9.0
