"""Clean data: which rows serve for tuning, for choosing and for the final measurement, and how they are tokenized."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Value

from .errors import DataError
from .labels import class_ids, completions
from .splits import load_splits, split_rows

__all__ = [
    "CleanData",
    "DataArguments",
    "TestDataArguments",
    "load_clean_data",
    "load_test_data",
    "tokenize",
]

# Of rows that must serve for tuning and for choosing, this share at least is kept for choosing.
MIN_EVAL_SHARE = 0.2
# Rows that a missing eval or test split is cut to: an accuracy near 90 % is known to one point (one standard error).
MAX_CUT_ROWS = 1000


@dataclass
class TestDataArguments:
    r"""
    Which clean data to measure on.

    Parameters:
        dataset (`str`):
            Hub id, local folder, or CSV, JSON or Parquet file.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub that has several (`sst2` of `nyu-mll/glue`).
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        test_split (`str`, *optional*, defaults to `"test"`):
            Split that the reported numbers come from. Slices work: `test[:50%]`.
        text_columns (`list[str]`, *optional*):
            One text column, or two for pairs. Default: the text columns there are.
        label_column (`str`, *optional*):
            Column of the class: `label` or `labels` by default.
        max_length (`int`, *optional*):
            Tokens a text is cut to. Default: what the model takes.
    """

    dataset: str = field(default="", metadata={"help": "Hub id, local folder, or CSV, JSON or Parquet file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset with several."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    test_split: str = field(default="test", metadata={"help": "Split that the reported numbers come from."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One text column, or two for pairs."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the class."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens a text is cut to."})

    def __post_init__(self):
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]


@dataclass
class DataArguments(TestDataArguments):
    r"""
    Which clean data to clean with, besides what [`TestDataArguments`] says.

    A test split that is missing or unlabelled is half of the eval rows. A missing eval split is 1,000 rows of the
    train split that were not drawn, 2,000 where the test rows come from them too. Only the default ones may be
    missing: a split that is named must be there.

    Parameters:
        train_split (`str`, *optional*, defaults to `"train"`):
            Split that the tuning samples are drawn from. Slices work: `train[:10%]`.
        eval_split (`str`, *optional*, defaults to `"validation"`):
            Split that ρ is chosen on. It may be the same as the train split: rows drawn from it leave it.
        num_clean_samples (`int`, *optional*, defaults to 64):
            Samples to fine-tune on, balanced over the classes.
        sample_seed (`int`, *optional*, defaults to 0):
            Seed of the drawing and of the cuts.
    """

    train_split: str = field(default="train", metadata={"help": "Split that the tuning samples are drawn from."})
    eval_split: str = field(default="validation", metadata={"help": "Split that the reserve ratio is chosen on."})
    num_clean_samples: int = field(default=64, metadata={"help": "Samples to fine-tune on, balanced over classes."})
    sample_seed: int = field(default=0, metadata={"help": "Seed of the drawing of samples and of the cuts."})


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


def load_clean_data(arguments: DataArguments, label2id: dict[str, int] | None) -> CleanData:
    """
    Load the data and give every row one use.

    Args:
        arguments ([`DataArguments`]): What to load.
        label2id (`dict[str, int]`, *optional*): The suspect's classes, to understand labels given by name; `None`
            where the labels are texts to write.

    Raises:
        [`DataError`]: Data that cannot be loaded, an unknown split or column, labels that are not the model's classes,
            fewer than two classes, no rows, or rows that serve both for tuning or choosing and for testing.
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
    text_columns, label_column = _columns(splits[arguments.train_split.split("[")[0]], arguments, label2id)
    table = _Table(splits, text_columns, label_column, label2id, arguments.dataset)

    rng = np.random.default_rng(arguments.sample_seed)
    train, evaluation, test = (table.labelled(rows[role] or []) for role in ("train", "eval", "test"))
    if not train:
        raise DataError(f"{arguments.dataset}: split {arguments.train_split!r} has no labelled rows to tune on.")
    _refuse_overlap(train, test, arguments, "train")
    _refuse_overlap(evaluation, test, arguments, "eval")
    # The same text in two splits, or twice in one, must not make the test easier.
    test = [row for row in test if None not in table.texts(row)]
    unusable = {table.texts(row) for row in test}

    limit = len(train)
    if shared := len(set(train) & set(evaluation or train)):
        limit -= math.ceil(MIN_EVAL_SHARE * shared)
    draw = _draw if label2id is None else _draw_balanced
    tuning = draw(train, table, min(arguments.num_clean_samples, limit), unusable, rng)
    unusable |= {table.texts(row) for row in tuning}
    if not evaluation:  # cut from train
        drawn = set(tuning)
        rest = [train[i] for i in rng.permutation(len(train)) if train[i] not in drawn]
        evaluation = rest[: MAX_CUT_ROWS if test else 2 * MAX_CUT_ROWS]
    left = [row for row in evaluation if table.usable(row, unusable)]
    if not test:  # halves of the eval rows, without a text in both
        left = [left[i] for i in rng.permutation(len(left))]
        left, test = left[len(left) // 2 :], left[: len(left) // 2]
        test_texts = {table.texts(row) for row in test}
        left = [row for row in left if table.usable(row, test_texts)]

    parts = {"tuning": sorted(tuning), "eval": sorted(left), "test": sorted(test)}
    description = {
        **origin,
        "text_columns": text_columns,
        "label_column": label_column,
        "splits": {role: _described(part, splits) for role, part in parts.items()},
        "rows": {role: len(part) for role, part in parts.items()},
    }
    return CleanData(*(table.dataset(part) for part in parts.values()), text_columns, description)


def load_test_data(arguments: TestDataArguments, label2id: dict[str, int] | None) -> tuple[Dataset, list[str]]:
    """
    Load the test split alone.

    Returns:
        `tuple[Dataset, list[str]]`: Rows with a column `label`, class ids or texts, and the names of the text columns.

    Raises:
        [`DataError`]: As for [`load_clean_data`].
    """
    splits, _ = load_splits(arguments.dataset, arguments.dataset_config, arguments.dataset_revision)
    rows = split_rows(arguments.test_split, splits)
    if rows is None:
        raise DataError(
            f"{arguments.dataset} has no split {arguments.test_split!r}: there are {', '.join(splits)}; name one with "
            "test_split."
        )
    text_columns, label_column = _columns(splits[arguments.test_split.split("[")[0]], arguments, label2id)
    table = _Table(splits, text_columns, label_column, label2id, arguments.dataset)
    rows = [row for row in table.labelled(rows) if table.usable(row, set())]
    if not rows:
        raise DataError(f"{arguments.dataset}: split {arguments.test_split!r} has no labelled rows: give another one.")
    return table.dataset(rows), text_columns


def tokenize(dataset: Dataset, tokenizer: Any, text_columns: list[str], max_length: int | None) -> Dataset:
    """The rows as `input_ids` and the like, with `labels`, cut to `max_length` tokens (default: the tokenizer's)."""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(*(batch[column] for column in text_columns), truncation=True, max_length=max_length)
        return {**encoded, "labels": batch["label"]}

    columns = dataset.column_names
    return dataset.map(encode, batched=True, remove_columns=columns, keep_in_memory=True, desc="Tokenizing")


class _Table:
    """The splits as one table of rows `(split, index)`. Texts are read when asked for: a split can be large."""

    def __init__(
        self, splits: DatasetDict, text_columns: list[str], label_column: str, label2id: dict | None, name: str
    ):
        self.splits, self.text_columns, self.name = splits, text_columns, name
        self._label_column, self._label2id = label_column, label2id
        self._labels: dict[str, list[int | None]] = {}

    def labelled(self, rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
        return [row for row in rows if self.label(row) is not None]

    def usable(self, row: tuple[str, int], unusable: set[tuple[str, ...]]) -> bool:
        texts = self.texts(row)
        return None not in texts and texts not in unusable

    def texts(self, row: tuple[str, int]) -> tuple[str, ...]:
        content = self.splits[row[0]][row[1]]
        return tuple(content[column] for column in self.text_columns)

    def label(self, row: tuple[str, int]) -> int | None:
        split, index = row
        if split not in self._labels:
            dataset, where = self.splits[split], f"{self.name}, split {split!r}"
            if {*self.text_columns, self._label_column} <= set(dataset.column_names):
                column, ids = self._label_column, self._label2id
                self._labels[split] = (
                    completions(dataset, column) if ids is None else class_ids(dataset, column, ids, where)
                )
            else:
                self._labels[split] = [None] * len(dataset)  # a split of another kind: no row of it is labelled
        return self._labels[split][index]

    def dataset(self, rows: list[tuple[str, int]]) -> Dataset:
        texts = [self.texts(row) for row in rows]
        columns = {column: [text[i] for text in texts] for i, column in enumerate(self.text_columns)}
        return Dataset.from_dict({**columns, "label": [self.label(row) for row in rows]})


def _columns(dataset: Dataset, arguments: TestDataArguments, label2id: dict[str, int] | None) -> tuple[list[str], str]:
    there = f"there are {', '.join(dataset.column_names)}"
    for name in [*(arguments.text_columns or []), *([arguments.label_column] if arguments.label_column else [])]:
        if name not in dataset.column_names:
            raise DataError(f"{arguments.dataset} has no column {name!r}: {there}.")
    usual = ("completion", "response", "target", "label") if label2id is None else ("label", "labels")
    label = arguments.label_column or next((name for name in usual if name in dataset.column_names), None)
    if label is None:
        raise DataError(
            f"{arguments.dataset} has no column {usual[0]!r}: {there}; name it with label_column (or is the line of "
            "names missing?)."
        )
    texts = arguments.text_columns or [
        name for name, feature in dataset.features.items() if name != label and _is_text(feature)
    ]
    if len(set(texts)) < len(texts):
        raise DataError(f"text_columns names {texts[0]!r} twice: name each column once.")
    for name in texts:
        if not _is_text(dataset.features[name]):
            raise DataError(f"{arguments.dataset}: column {name!r} holds no text: {there}; name another one.")
    if len(texts) not in ((1,) if label2id is None else (1, 2)):
        pairs = "" if label2id is None else ", or two for pairs,"
        raise DataError(
            f"{arguments.dataset}: which columns are the text is not clear: {there}; name one{pairs} "
            "with text_columns."
        )
    return texts, label


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in {"string", "large_string"}


def _refuse_overlap(part: list, test: list, arguments: DataArguments, role: str) -> None:
    if common := set(part) & set(test):
        name = getattr(arguments, f"{role}_split")
        raise DataError(
            f"{len(common)} rows are in both the {role} split {name!r} and the test split {arguments.test_split!r}: "
            "give disjoint splits or slices, like validation[:50%] and validation[50%:]."
        )


def _draw(rows: list, table: _Table, count: int, unusable: set, rng: np.random.Generator) -> list:
    """Draw rows at random, each text once."""
    drawn: dict[tuple[str, ...], Any] = {}
    for i in rng.permutation(len(rows)):
        if len(drawn) == count:
            break
        if table.usable(rows[i], unusable):
            drawn.setdefault(table.texts(rows[i]), rows[i])
    if not drawn:
        raise DataError(f"{table.name}: the rows to tune on are also test rows, or empty: give other rows.")
    return list(drawn.values())


def _draw_balanced(rows: list, table: _Table, count: int, unusable: set, rng: np.random.Generator) -> list:
    """Draw the same number of each class, as far as they go, then fill up from what is left."""
    queues: dict[int, list] = {}
    for i in rng.permutation(len(rows)):
        queues.setdefault(table.label(rows[i]), []).append(rows[i])
    if len(queues) < 2:
        raise DataError(
            f"{table.name}: all {len(rows)} rows to tune on have the label {next(iter(queues))}; give clean data with "
            "at least two classes."
        )
    if count < len(queues):
        raise DataError(f"{count} clean samples cannot cover {len(queues)} classes: give more rows or samples.")
    drawn: list = []
    while len(drawn) < count and any(queues.values()):
        for _, queue in sorted(queues.items()):
            while queue and not table.usable(queue[-1], unusable):
                queue.pop()
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
    if len({table.label(row) for row in drawn}) < 2:
        raise DataError(f"{table.name}: the rows to tune on are also test rows, or empty: give other rows.")
    return drawn


def _described(rows: list[tuple[str, int]], splits: DatasetDict) -> str:
    counts = Counter(split for split, _ in rows)
    return ", ".join(
        split if count == len(splits[split]) else f"{split} ({count:,} of {len(splits[split]):,})"
        for split, count in sorted(counts.items())
    )
