"""Rows out of a dataset of any kind."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Subset

__all__ = ["rows_from_all", "select_rows", "spread_rows"]


def select_rows(dataset: Any, indices: np.ndarray) -> Any:
    """Rows of a dataset, of the same kind where it can be."""
    indices = indices.tolist()
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)


def spread_rows(data: Any, count: int) -> Any:
    """At most `count` rows from all over the data, which may be sorted; `None` where they cannot be had by number."""
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    if not all(hasattr(part, "__len__") and hasattr(part, "__getitem__") for part in parts):
        return None
    total = sum(map(len, parts))
    shares = [min(len(part), max(1, count * len(part) // max(1, total))) for part in parts]
    picks = [np.linspace(0, len(part) - 1, share).astype(int) for part, share in zip(parts, shares, strict=True)]
    chosen = [select_rows(part, np.unique(pick)) for part, pick in zip(parts, picks, strict=True)]
    return dict(enumerate(chosen)) if len(chosen) > 1 else chosen[0]


def rows_from_all(datasets: Iterable[Any], count: int) -> Iterator[Any]:
    """
    Datasets of about `count` rows together: all that the first has, then from all over the next, and so on.

    One whose rows cannot be had by number comes whole, for the caller to stop in.
    """
    for dataset in datasets:
        if count <= 0:
            return
        some = spread_rows(dataset, count)
        if some is not None:
            count -= len(some)
        yield dataset if some is None else some
