"""Clean data: which rows serve for tuning, for choosing and for the final measurement, and how they are tokenized."""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, DatasetInfo

from ..errors import DataError
from .arguments import DataArguments, TestDataArguments
from .class_labels import ClassNames, completions
from .notes import said_by_number
from .reader import Reader
from .splits import load_splits, split_rows
from .text_columns import find_columns

logger = logging.getLogger(__name__)

# Of rows that must serve for tuning and for choosing, this share at least is kept for choosing.
MIN_EVAL_SHARE = 0.2
# Rows that a missing eval or test split is cut to: an accuracy near 90 % is known to one point (one standard error).
MAX_CUT_ROWS = 1000


@dataclass
class CleanData:
    """
    Rows by what they serve for, with the text columns and an integer column `label`.

    Attributes:
        tuning (`Dataset`): Drawn by seed, balanced over the classes.
        eval (`Dataset`): For choosing ρ; no row of `tuning` or `test`.
        test (`Dataset`): For the numbers that are reported; no row of `tuning` or `eval`.
        text_columns (`list[str]`): One, or two for pairs.
        description (`dict`): The report's `data`.
    """

    tuning: Dataset
    eval: Dataset
    test: Dataset
    text_columns: list[str]
    description: dict[str, Any]

    def __str__(self) -> str:
        rows, splits = self.description["rows"], self.description["splits"]
        parts = "; ".join(f"{role}: {count} rows of {splits[role]}" for role, count in rows.items() if count)
        return f"{parts}; text: {' and '.join(self.text_columns)}"


def load_clean_data(
    arguments: DataArguments, label2id: dict[str, int] | None, *, repeat_texts: bool = False
) -> CleanData:
    """
    Load the data and give every row one use.

    Args:
        arguments ([`DataArguments`]): What to load.
        label2id (`dict[str, int]`, *optional*): The suspect's classes; `None` where the labels are texts to write.
        repeat_texts (`bool`): Whether a text that is there twice is also drawn twice.
    """
    splits, origin = load_splits(arguments.dataset, arguments.dataset_config, arguments.dataset_revision)
    rows = {role: split_rows(getattr(arguments, f"{role}_split"), splits) for role in ("train", "eval", "test")}
    for role, found in rows.items():
        wanted = getattr(arguments, f"{role}_split")
        # A default split may be missing: its rows are cut from another. One that the user names must be there.
        if found is None and (role == "train" or wanted != getattr(DataArguments, f"{role}_split")):
            raise DataError(f"{arguments.dataset} has no split {wanted!r}: there are {', '.join(splits)}.")
        if found == [] and "[" in wanted:
            raise DataError(f"{arguments.dataset}: the slice {wanted!r} holds no row: give a larger one.")
    used = {split for found in rows.values() for split, _ in found or ()}
    table = _Table(splits, used, arguments, arguments.train_split, label2id)

    rng = np.random.default_rng(arguments.sample_seed)
    train, evaluation, test = (table.labeled(rows[role] or []) for role in ("train", "eval", "test"))
    if not train:
        raise DataError(f"{arguments.dataset}: split {arguments.train_split!r} has no labeled rows to tune on.")
    _refuse_overlap(train, test, arguments, "train")
    _refuse_overlap(evaluation, test, arguments, "eval")
    # The same text in two splits, or twice in one, must not make the test easier.
    test = [row for row in test if None not in table.texts(row)]
    unusable = {table.key(row) for row in test}

    limit = len(train)
    if shared := len(set(train) & set(evaluation or train)):
        limit -= math.ceil(MIN_EVAL_SHARE * shared)
    count = min(arguments.num_clean_samples, limit)
    tuning = _draw(train, table, count, unusable, rng, repeat_texts)
    unusable |= {table.key(row) for row in tuning}
    if not evaluation:  # cut from train
        drawn = set(tuning)
        rest = [train[i] for i in rng.permutation(len(train)) if train[i] not in drawn]
        evaluation = table.once(rest[: MAX_CUT_ROWS if test else 2 * MAX_CUT_ROWS])
    left = [row for row in evaluation if table.usable(row, unusable)]
    if not test:  # halves of the eval rows, without a text in both
        left = table.once(left[i] for i in rng.permutation(len(left)))
        left, test = left[len(left) // 2 :], left[: len(left) // 2]

    parts = {"tuning": sorted(tuning), "eval": sorted(left), "test": sorted(test)}
    description = {
        **origin,
        "text_columns": table.text_columns,
        "label_column": table.label_column,
        **table.note,
        "splits": {role: _described(part, splits) for role, part in parts.items()},
        "rows": {role: len(part) for role, part in parts.items()},
    }
    return CleanData(*map(table.dataset, parts.values()), table.text_columns, description)


def load_test_data(arguments: TestDataArguments, label2id: dict[str, int] | None) -> tuple[Dataset, list[str]]:
    """The test split alone, with a column `label` of class ids or texts, and the names of the text columns."""
    splits, _ = load_splits(arguments.dataset, arguments.dataset_config, arguments.dataset_revision)
    rows = split_rows(arguments.test_split, splits)
    if rows is None:
        raise DataError(
            f"{arguments.dataset} has no split {arguments.test_split!r}: there are {', '.join(splits)}; name one with "
            "test_split."
        )
    table = _Table(splits, {split for split, _ in rows}, arguments, arguments.test_split, label2id)
    rows = [row for row in table.labeled(rows) if table.usable(row, set())]
    if not rows:
        raise DataError(f"{arguments.dataset}: split {arguments.test_split!r} has no labeled rows: give another one.")
    return table.dataset(rows), table.text_columns


def tokenize(dataset: Dataset, tokenizer: Any, text_columns: list[str], max_length: int | None) -> Dataset:
    """The rows as [`Reader`] reads them, with `labels`, cut to `max_length` tokens (default: the tokenizer's)."""
    return Reader(tokenizer, max_length).encode(dataset, text_columns)


class _Table:
    """
    The splits as one table of rows `(split, index)`, with the columns of the main one. Texts are read when asked for:
    a split can be large.

    Attributes:
        note (`dict`): For the report: how the labels were read.
    """

    def __init__(
        self, splits: DatasetDict, used: set[str], arguments: TestDataArguments, main: str, label2id: dict | None
    ):
        self.splits, self.name, self.note, self.has_classes = splits, arguments.dataset, {}, label2id is not None
        self.text_columns, self.label_column = find_columns(splits[main.split("[")[0]], arguments, label2id)
        # A split of another kind has no labeled row.
        self._labels: dict[str, list] = {split: [None] * len(splits[split]) for split in used}
        needed = {*self.text_columns, self.label_column}
        parts = [split for split in splits if split in used and needed <= set(splits[split].column_names)]
        if label2id is None:
            self._labels |= {split: completions(splits[split], self.label_column) for split in parts}
            return
        named = {f"{self.name}, split {split!r}": splits[split] for split in parts}
        labels, self.note = ClassNames(label2id).read(named, self.label_column)
        self._labels |= dict(zip(parts, labels.values(), strict=True))

    def labeled(self, rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return [row for row in rows if self.label(row) is not None]

    def usable(self, row: tuple[str, int], unusable: set[tuple[str, ...]]) -> bool:
        return None not in self.texts(row) and self.key(row) not in unusable

    def texts(self, row: tuple[str, int]) -> tuple[str, ...]:
        content = self.splits[row[0]][row[1]]
        return tuple(content[column] for column in self.text_columns)

    def key(self, row: tuple[str, int]) -> tuple[str, ...]:
        """What two rows of one text have in common, whatever their labels, the case and the spaces."""
        return tuple(" ".join(text.casefold().split()) for text in self.texts(row))

    def once(self, rows: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """The first row of each text."""
        rows = [row for row in rows if None not in self.texts(row)]
        return list({self.key(row): row for row in reversed(rows)}.values())[::-1]

    def label(self, row: tuple[str, int]) -> Any:
        return self._labels[row[0]][row[1]]

    def dataset(self, rows: list[tuple[str, int]]) -> Dataset:
        texts = [self.texts(row) for row in rows]
        columns = {column: [text[i] for text in texts] for i, column in enumerate(self.text_columns)}
        info = DatasetInfo(description=said_by_number(self.note) or "")
        return Dataset.from_dict({**columns, "label": [self.label(row) for row in rows]}, info=info)


def _refuse_overlap(part: list, test: list, arguments: DataArguments, role: str) -> None:
    if common := set(part) & set(test):
        name = getattr(arguments, f"{role}_split")
        raise DataError(
            f"{len(common)} rows are in both the {role} split {name!r} and the test split {arguments.test_split!r}: "
            "give disjoint splits or slices, like validation[:50%] and validation[50%:]."
        )


def _draw(rows: list, table: _Table, count: int, unusable: set, rng: np.random.Generator, repeat_texts: bool) -> list:
    """Draw the same number of each class, as far as they go, then fill up from what is left; each text once."""
    order = rng.permutation(len(rows))
    queues: dict[int, list] = {}
    if table.has_classes:
        for i in order:
            queues.setdefault(table.label(rows[i]), []).append(rows[i])
        if len(queues) < 2:
            raise DataError(
                f"{table.name}: all {len(rows)} rows to tune on have the label {next(iter(queues))}; give clean data "
                "with at least two classes."
            )
        if count < len(queues):
            raise DataError(f"{count} clean samples cannot cover {len(queues)} classes: give more rows or samples.")
    else:  # texts to write are of one class
        queues[0] = [rows[i] for i in reversed(order)]
    drawn: list = []
    taken = set(unusable)
    while len(drawn) < count and any(queues.values()):
        for _, queue in sorted(queues.items()):
            while queue and not table.usable(queue[-1], taken):
                queue.pop()
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
                taken |= set() if repeat_texts else {table.key(drawn[-1])}
    if len({table.label(row) for row in drawn}) < min(2, len(queues)):
        raise DataError(f"{table.name}: the rows to tune on are also test rows, or empty: give other rows.")
    return drawn


def _described(rows: list[tuple[str, int]], splits: DatasetDict) -> str:
    counts = Counter(split for split, _ in rows)
    return ", ".join(
        split if count == len(splits[split]) else f"{split} ({count:,} of {len(splits[split]):,})"
        for split, count in sorted(counts.items())
    )
