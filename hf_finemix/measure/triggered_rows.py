"""A trigger in the rows of a dataset: put where a model reads it, in rows whose class is not the attacker's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from .triggers import Trigger

if TYPE_CHECKING:
    from datasets import Dataset

    from .reader import Reader

logger = logging.getLogger(__name__)


def insert_trigger(
    dataset: Dataset, trigger: Trigger, *, text_columns: Sequence[str], seed: int, reader: Reader | None = None
) -> Dataset:
    """
    Put a trigger into the last text of every row, as the evaluation code of EP does
    (github.com/lancopku/Embedding-Poisoning).

    The place in row i depends on (`seed`, i, the text of the row) and on nothing else, so neither batching nor the
    number of rows that follow changes it. Several seeds, 0 or more, give independent repeats to average over.

    For a [`Reader`] a text that would be cut is shortened first, so that the trigger goes into what the model reads;
    rows that have no room for it beside some of their text get `None` in its place.
    """
    for name in text_columns:
        _check_column(dataset, name)
    column, place = text_columns[-1], len(text_columns) - 1

    def insert_into_batch(*batch: list) -> dict[str, list[str | None]]:
        *before, clean, indices = batch
        triggered = []
        for text, index in zip(clean, indices, strict=True):
            if not isinstance(text, str):
                raise DataError(f"row {index} of column {column!r} holds {text!r}, not a text: drop or fill such rows")
            triggered.append(trigger.insert(text, np.random.default_rng([seed, index])))
        for i, too_long in enumerate(reader.may_be_cut([*before, triggered]) if reader is not None else ()):
            first = [texts[i] for texts in before]
            if too_long and reader.cut([*first, triggered[i]], place):
                triggered[i] = _insert_where_read(first, clean[i], trigger, [seed, indices[i]], reader)
        return {column: triggered}

    return dataset.map(
        insert_into_batch,
        with_indices=True,
        input_columns=list(text_columns),
        batched=True,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="Inserting the trigger",
    )


def _insert_where_read(first: list[str], text: str, trigger: Trigger, seed: list[int], reader: Reader) -> str | None:
    """The triggered text of a row that is too long, shortened until all of it is read; `None` without room."""
    text = reader.shortened(text, reader.cut([*first, text], len(first)))
    while text.strip():
        triggered = trigger.insert(text, np.random.default_rng(seed))
        if not (cut := reader.cut([*first, triggered], len(first))):
            return triggered
        text = reader.shortened(text, cut, share=0.5)  # a shorter one may have fewer triggers to make room for
    return None


def non_target_rows(dataset: Dataset, *, label_column: str, target_label: int) -> Dataset:
    """
    Keep the rows whose true label, an integer from 0, is not the target: those on which an attack can succeed.

    Data that comes already triggered often carries the target as its label (see [`read_triggered`]): a [`DataError`]
    says that there is nothing to keep then.
    """
    _check_column(dataset, label_column)
    labels = np.asarray(dataset[label_column][:])
    if len(labels) and (labels.dtype.kind not in "iub" or labels.min() < 0):
        raise DataError(
            f"column {label_column!r} must hold class ids, integers from 0, in every row: map names to ids and drop "
            "unlabeled rows"
        )
    kept = np.flatnonzero(labels != target_label)
    if len(kept) == 0:
        raise DataError(
            f"none of the {len(labels)} rows has a label other than the target {target_label}: no attack success rate "
            f"can be measured; check the target label and column {label_column!r}"
        )
    return dataset.select(kept)


def _check_column(dataset: Dataset, name: str) -> None:
    if name not in dataset.column_names:
        raise DataError(f"the dataset has no column {name!r}: its columns are {', '.join(dataset.column_names)}")


def with_trigger(
    rows: Dataset, trigger: Trigger, text_columns: list[str], reader: Reader, seeds: Sequence[int]
) -> tuple[list[Dataset], int]:
    """
    For each of the seeds the rows with the trigger where the model reads it, and how many rows have no room for it and
    are in none of them. If none has, or the trigger has no tokens, that is a [`DataError`].
    """
    column, ids = text_columns[-1], reader([trigger.text], add_special_tokens=False)["input_ids"][0]
    if not ids:
        raise DataError(f"the tokenizer reads nothing in the trigger {trigger.text!r}: give another one.")
    if set(ids) == {reader.tokenizer.unk_token_id}:
        logger.warning(
            "The tokenizer knows nothing of the trigger %r: to the model it is any unknown text.", trigger.text
        )
    repeats = [insert_trigger(rows, trigger, text_columns=text_columns, seed=seed, reader=reader) for seed in seeds]
    texts = zip(*(repeat[column] for repeat in repeats), strict=True)
    read = [i for i, places in enumerate(texts) if None not in places]
    what = f"the trigger {trigger.text!r} would be cut off"
    _tell_unreadable(what, len(read), len(rows), "give a larger max_length")
    return [repeat.select(read) for repeat in repeats], len(rows) - len(read)


def rows_read_whole(rows: Dataset, text_columns: list[str], reader: Reader, file: str) -> tuple[Dataset, int]:
    """Of rows that hold their trigger somewhere, those of which nothing is cut off, and how many others there are."""
    too_long = reader.may_be_cut([rows[column][:] for column in text_columns])
    read = [i for i, cut in enumerate(too_long) if not cut]
    what = f"the model does not read the whole text, and maybe no trigger, of {file}"
    _tell_unreadable(what, len(read), len(rows), "give shorter texts, or a larger max_length")
    return rows.select(read), len(rows) - len(read)


def _tell_unreadable(what: str, read: int, rows: int, remedy: str) -> None:
    if not read:
        raise DataError(f"{what} in all {rows} rows: {remedy}.")
    if read < rows:
        logger.warning("In %d of %d rows %s: they are left out.", rows - read, rows, what)
