"""E-PUR (embedding purification, arXiv:2210.09545): score word embeddings by their drift, find the ones to reset."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..align.pair_on_disk import CHUNK_ON_DISK, read_pair
from ..align.pairing import Pairing, TensorMix
from ..config import FineMixingConfig
from ..errors import AlignmentError
from ..io.checkpoint import Checkpoint, row_chunks
from ..io.dtypes import to_float64

logger = logging.getLogger(__name__)

MIN_FREQUENCY = 20.0


def row_drift(suspect_rows: np.ndarray, base_rows: np.ndarray) -> np.ndarray:
    """‖δ_i‖₂ of each embedding row, δ_i = e_i(suspect) - e_i(base): float64, shapes `[n, d]` → `[n]`."""
    delta = suspect_rows - base_rows
    return np.sqrt((delta * delta).sum(axis=1))


def purification_scores(drift: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    r"""
    Score how suspicious the drift of each embedding row is: ‖δ_i‖₂ / log(max(f_i, 20)).

    An honest row drifts about as the logarithm of how often it was updated, a trigger's row far more
    (arXiv:2210.09545, E-PUR). The frequencies f_i are expected counts in a corpus of 1.24e9 pieces; all shapes are
    `[n]`.
    """
    return drift / np.log(np.maximum(np.asarray(frequencies, dtype=np.float64), MIN_FREQUENCY))


def rows_to_purify(scores: np.ndarray, count: int, exempt: Collection[int] = ()) -> list[int]:
    """
    The ids of the `count` largest scores, largest first (ties: the lower id first).

    Rows in `exempt` (special tokens) and rows that have not moved at all (score 0) are never among them.
    """
    scores = scores.copy()
    scores[[i for i in exempt if 0 <= i < len(scores)]] = 0
    order = np.argsort(-scores, kind="stable")[:count]
    return [i for i in order.tolist() if scores[i] > 0]


@dataclass
class TokenDrift:
    """What E-PUR knows of every token of the base's vocabulary: arrays of float64, shape `[n]`."""

    delta: np.ndarray  # ‖δ_i‖₂
    frequency: np.ndarray  # f_i, expected count in a corpus of 1.24e9 pieces
    score: np.ndarray  # from `purification_scores`
    exempt: frozenset[int] = frozenset()  # special tokens, which are never purified

    @classmethod
    def measured(cls, delta: np.ndarray, frequency: np.ndarray, exempt: Collection[int]) -> "TokenDrift":
        """With the scores that go with it."""
        return cls(delta, frequency, purification_scores(delta, frequency), frozenset(exempt))

    def describe(self, token_id: int) -> dict[str, Any]:
        """`id`, `delta`, `frequency` and `score` of a token as JSON values."""
        columns = {"delta": self.delta, "frequency": self.frequency, "score": self.score}
        return {"id": token_id, **{name: float(values[token_id]) for name, values in columns.items()}}

    def rank(self, token_id: int) -> int:
        """1 for the largest score of the tokens that are not exempt."""
        return 1 + int((self.score[self._counted()] > self.score[token_id]).sum())

    def histogram(self) -> dict[str, Any]:
        """
        How many tokens there are by ‖δ_i‖₂ and f_i: the crowd that a purified token stands out from.

        Returns:
            `dict`: `num_tokens`, without those that are exempt; `num_unmoved`, those with ‖δ_i‖₂ = 0, which `counts`
            leaves out; `frequency_edges` (41, logarithmic, from 20, the least that the score takes) and `drift_edges`
            (33, linear; the few tokens beyond are left out too), and `counts` by frequency and drift: JSON values all.
        """
        counted = self._counted()
        delta, frequency = self.delta[counted], np.maximum(self.frequency[counted], MIN_FREQUENCY)
        moved = delta > 0
        top = min(delta.max(), 2 * np.quantile(delta[moved], 0.999)) if moved.any() else 1.0
        frequency_edges = np.geomspace(MIN_FREQUENCY, max(frequency.max(initial=0), 10 * MIN_FREQUENCY), 41)
        frequency_edges[-1] *= 1 + 1e-9  # or the most frequent token falls out by a rounding error
        bins = [frequency_edges, np.linspace(0, top, 33)]
        counts, *edges = np.histogram2d(frequency[moved], delta[moved], bins=bins)
        return {
            "num_tokens": len(counted),
            "num_unmoved": int((~moved).sum()),
            "frequency_edges": [float(f"{edge:.6g}") for edge in edges[0]],
            "drift_edges": [float(f"{edge:.6g}") for edge in edges[1]],
            "counts": counts.astype(int).tolist(),
        }

    def _counted(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.delta)), list(self.exempt))


def purify(
    pairing: Pairing,
    blocks: Callable[[TensorMix], Iterable[tuple[np.ndarray, np.ndarray]]],
    config: FineMixingConfig,
    frequencies: np.ndarray,
    special_token_ids: Collection[int],
) -> tuple[TokenDrift | None, list[dict[str, Any]], list[int]]:
    """
    Find the embeddings to reset (E-PUR) and mark their rows.

    `blocks` gives what the embedding has in common with the base's, `(suspect, base)` in float64 of some rows after
    the other; `frequencies` are f_i by token id. Special tokens are never purified.

    Returns:
        `tuple`: What was measured of every token; `id`, `delta`, `frequency` and `score` of each that is purified,
        largest score first; and the ids of added tokens, which are not scored.
    """
    tensor = pairing.mixed_embedding()
    if tensor is None:
        logger.warning("E-PUR has nothing to purify: the input embedding is not mixed.")
        return None, [], []
    delta = np.concatenate([row_drift(*rows) for rows in blocks(tensor)])
    counts = np.zeros(tensor.rows)  # of rows that the tokenizer cannot produce (padding of the vocabulary): 0
    counts[: len(frequencies)] = frequencies[: tensor.rows]
    drift = TokenDrift.measured(delta, counts, special_token_ids)
    ids = rows_to_purify(drift.score, config.num_purified_tokens, special_token_ids)
    pairing.mark_purified(ids)
    return drift, [drift.describe(i) for i in ids], list(range(tensor.rows, tensor.info.shape[0]))


def blocks_on_disk(
    tensor: TensorMix, suspect: Checkpoint, base: Checkpoint
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of an embedding of two checkpoints, for [`purify`]."""
    for first, last, start in row_chunks((tensor.rows, tensor.row), CHUNK_ON_DISK):
        pair = read_pair(tensor, suspect, base, start, start + (last - first) * tensor.row)
        s, b = (to_float64(side, tensor.info.dtype).reshape(-1, tensor.row) for side in pair)
        if not np.isfinite(s.sum() + b.sum()):
            raise AlignmentError(f"NaN or infinite weights in {tensor.name}: get another copy of the model.")
        yield s, b
