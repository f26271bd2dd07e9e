"""E-PUR (embedding purification, arXiv:2210.09545): score word embeddings by their drift, find the ones to reset."""

from collections.abc import Collection

import numpy as np
import torch

__all__ = ["MIN_FREQUENCY", "purification_scores", "row_drift", "rows_to_purify"]

MIN_FREQUENCY = 20.0


def row_drift(suspect_rows: torch.Tensor, base_rows: torch.Tensor) -> torch.Tensor:
    """‖δ_i‖₂ of each embedding row, δ_i = e_i(suspect) - e_i(base): shapes `[n, d]` → `[n]`, float64 on the CPU."""
    return (suspect_rows.double() - base_rows.double()).norm(dim=1).cpu()


def purification_scores(drift: torch.Tensor, frequencies: np.ndarray) -> torch.Tensor:
    r"""
    Score how suspicious the drift of each embedding row is: ‖δ_i‖₂ / log(max(f_i, 20)).

    An honest row drifts about as the logarithm of how often it was updated, a trigger's row far more
    (arXiv:2210.09545, E-PUR).

    Args:
        drift (`torch.Tensor`): ‖δ_i‖₂ of each token, shape `[n]`, from [`row_drift`].
        frequencies (`np.ndarray`): Expected counts f_i in a corpus of 1.24e9 pieces, shape `[n]`.

    Returns:
        `torch.Tensor`: Scores, shape `[n]`, float64, at least 0.
    """
    counts = torch.from_numpy(np.maximum(np.asarray(frequencies, dtype=np.float64), MIN_FREQUENCY))
    return drift / counts.log()


def rows_to_purify(scores: torch.Tensor, count: int, exempt: Collection[int] = ()) -> list[int]:
    """
    The ids of the `count` largest scores, largest first (ties: the lower id first).

    Rows in `exempt` (special tokens) and rows that have not moved at all (score 0) are never among them.
    """
    scores = scores.clone()
    scores[[i for i in exempt if 0 <= i < len(scores)]] = 0
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    return [i for i in order.tolist() if scores[i] > 0]
