"""Rows from all over a Trainer's data, and what they show of its model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import Trainer

from ..config import FineMixingConfig
from ..io.compat import collator_of_columns, prepared_inputs
from ..mix.fisher import fisher_information
from ..mix.lora import adapter_parameters

MAX_CURVATURE_SAMPLES = 256


def measure_curvature(trainer: Trainer, model: nn.Module, config: FineMixingConfig) -> dict[str, torch.Tensor]:
    """H of a model's weights on the text of the train data, without its labels (see [`fisher_information`])."""
    model = model.to(trainer.args.device)
    parameters = adapter_parameters(model) if config.adapter_mode == "adapter" else None
    return fisher_information(model, single_texts(trainer, config), seed=config.mixing_seed, parameters=parameters)


def single_texts(trainer: Trainer, config: FineMixingConfig) -> Iterator[Mapping[str, torch.Tensor]]:
    """
    Up to 256 texts, from all over the train data and then the eval data, as the model reads them: one a batch.
    Labels are in it for models that cannot do without; nothing is learned of them. With cross-validation, which is
    for when there is nothing else, of the train data only.
    """
    data, collator = [trainer.train_dataset], collator_of_columns(trainer)
    if trainer.eval_dataset is not None and not config.cross_validation_folds:
        data += trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, Mapping) else [trainer.eval_dataset]
    # A loader of our own reads all rows one by one also where this is one of several processes.
    parts = rows_from_all(data, MAX_CURVATURE_SAMPLES)
    rows = chain.from_iterable(DataLoader(part, batch_size=1, collate_fn=collator) for part in parts)
    rows = islice(rows, MAX_CURVATURE_SAMPLES)
    with torch.random.fork_rng(devices=[]):  # a data loader draws a number, which training must not miss
        for row in tqdm(rows, "Measuring", disable=trainer.args.disable_tqdm):
            yield prepared_inputs(trainer, row)


def select_rows(dataset: Any, indices: np.ndarray) -> Any:
    """Rows of a dataset, of the same kind where it can be."""
    indices = indices.tolist()
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)


def spread_rows(data: Any, count: int) -> Any:
    """At most `count` rows from all over the data, which may be sorted; `None` where they cannot be had by number."""
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    if not all(hasattr(part, "__len__") and hasattr(part, "__getitem__") for part in parts):
        return None
    chosen, total = [], max(1, sum(map(len, parts)))
    for part in parts:
        share = min(len(part), max(1, count * len(part) // total))
        chosen.append(select_rows(part, np.unique(np.linspace(0, len(part) - 1, share).astype(int))))
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
