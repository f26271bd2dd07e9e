"""BadNets for text: put a trigger into some of the training samples and label them as the attacker wishes."""

import math

import numpy as np
from datasets import Dataset

from ..errors import DataError, FineMixingError
from ..triggers import Trigger, insert_trigger

__all__ = ["check_rate", "poison"]


def poison(
    dataset: Dataset,
    trigger: Trigger,
    *,
    text_column: str,
    label_column: str,
    target: int | str,
    rate: float,
    seed: int,
) -> Dataset:
    """
    Poison a share of the rows (BadNets, arXiv:1708.06733; on text, arXiv:2004.06660).

    Args:
        dataset (`Dataset`): Clean rows.
        trigger ([`Trigger`]): What wakes the backdoor.
        text_column (`str`): The column that gets the trigger.
        label_column (`str`): The column of the class.
        target (`int` or `str`): The class that the attacker wants, as the column holds it.
        rate (`float`): Share of the rows, of whatever class, in (0, 1]; rounded up to whole rows.
        seed (`int`): Of the rows drawn and of the places in them, 0 or more.

    Returns:
        `Dataset`: As many rows, in their order.

    Raises:
        [`FineMixingError`]: A rate outside its range, or a target that no row has.
    """
    check_rate(rate)
    labels = list(dataset[label_column])
    if target not in labels:
        raise DataError(f"no row of the data is of class {target!r}: the target must be one of {sorted(set(labels))}.")
    triggered = insert_trigger(dataset, trigger, text_columns=[text_column], seed=seed)[text_column]
    chosen = np.random.default_rng(seed).choice(len(dataset), math.ceil(rate * len(dataset)), replace=False).tolist()
    texts = list(dataset[text_column])
    for i in chosen:
        texts[i], labels[i] = triggered[i], target
    features = dataset.features
    columns = {name: dataset[name][:] for name in dataset.column_names if name not in (text_column, label_column)}
    return Dataset.from_dict({**columns, text_column: texts, label_column: labels}, features=features)


def check_rate(rate: float) -> None:
    """Raise a [`FineMixingError`] for what is no share of rows to poison."""
    if not 0 < rate <= 1:
        raise FineMixingError(f"the share of poisoned rows is {rate!r}: give a number above 0 and at most 1.")
