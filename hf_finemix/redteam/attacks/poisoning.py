"""BadNets for text: put a trigger into some of the training samples and label them as the attacker wishes."""

import logging
import math
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from ...errors import DataError, FineMixingError
from ...measure.reader import Reader
from ...measure.triggered_rows import insert_trigger
from ...measure.triggers import Trigger

logger = logging.getLogger(__name__)


def poison(
    dataset: Dataset,
    trigger: Trigger,
    *,
    text_columns: Sequence[str],
    target: int | str,
    rate: float,
    seed: int,
    reader: Reader | None = None,
) -> Dataset:
    """
    Poison a share of the rows (BadNets, arXiv:1708.06733; on text, arXiv:2004.06660).

    Args:
        dataset (`Dataset`): Clean rows with their class in the column `label`.
        trigger ([`Trigger`]): What wakes the backdoor.
        text_columns (`Sequence[str]`): One name, or two for pairs; the last one gets the trigger.
        target (`int` or `str`): The class that the attacker wants, as the column holds it.
        rate (`float`): Share of the rows, of whatever class, in (0, 1]; rounded up to whole rows.
        seed (`int`): Of the rows drawn and of the places in them, 0 or more.
        reader ([`Reader`], *optional*): How the model reads the rows; where it has no room for the trigger, they stay
            clean.

    Returns:
        `Dataset`: As many rows, in their order.

    Raises:
        [`FineMixingError`]: A rate outside its range, a target that no row has, or no row with room for the trigger.
    """
    check_rate(rate)
    labels = list(dataset["label"])
    if target not in labels:
        raise DataError(f"no row of the data is of class {target!r}: the target must be one of {sorted(set(labels))}.")
    text_column = text_columns[-1]
    triggered = insert_trigger(dataset, trigger, text_columns=text_columns, seed=seed, reader=reader)[text_column]
    chosen = np.random.default_rng(seed).choice(len(dataset), math.ceil(rate * len(dataset)), replace=False).tolist()
    read = [i for i in chosen if triggered[i] is not None]
    if not read:
        raise DataError(f"the trigger {trigger.text!r} would be cut off in all rows: give a larger max_length.")
    if len(read) < len(chosen):
        logger.warning("%d of %d rows stay clean: the trigger would be cut off.", len(chosen) - len(read), len(chosen))
    texts = list(dataset[text_column])
    for i in read:
        texts[i], labels[i] = triggered[i], target
    columns = {name: dataset[name][:] for name in dataset.column_names if name not in (text_column, "label")}
    return Dataset.from_dict({**columns, text_column: texts, "label": labels}, features=dataset.features)


def check_rate(rate: float) -> None:
    """Raise a [`FineMixingError`] for what is no share of rows to poison."""
    if not 0 < rate <= 1:
        raise FineMixingError(f"the share of poisoned rows is {rate!r}: give a number above 0 and at most 1.")
