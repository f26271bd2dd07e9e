"""Clean data: which rows serve for tuning, for choosing and for the final measurement, and how they are tokenized."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, DatasetInfo, Value

from ..errors import DataError
from .class_labels import ClassNames, completions
from .notes import said_by_number
from .reader import Reader
from .splits import load_splits, split_rows

__all__ = [
    "CleanData",
    "DataArguments",
    "TestDataArguments",
    "load_clean_data",
    "load_test_data",
    "tokenize",
]

logger = logging.getLogger(__name__)

# Two columns that are known to be a pair, in the order in which models read them.
PAIRS = [("premise", "hypothesis"), ("question", "sentence"), ("sentence1", "sentence2"), ("question1", "question2")]
PAIRS += [("sentence_a", "sentence_b"), ("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair")]
PAIRS += [("query", "passage"), ("query", "document"), ("question", "passage"), ("claim", "evidence")]
# Rows that are looked at to tell texts from ids and names of classes.
MAX_JUDGED_ROWS = 10_000
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
            One text column, or two for pairs. Default: the one there is, or two that are known to be a pair (such as
            `premise` and `hypothesis`); names of classes and ids are no texts.
        label_column (`str`, *optional*):
            Column of the class: `label` or `labels` by default. Classes go by name where the model knows all names
            that are used, by number where it knows none; a missing value, an empty text and -1 are no label.
        max_length (`int`, *optional*):
            Tokens a text is cut to. Default: what the model takes.
    """

    dataset: str = field(
        default="",
        metadata={
            "help": "Hub id, local folder, or CSV, JSON or Parquet file.",
            "aliases": ["--dataset-name", "--dataset_name"],
        },
    )
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

    A test split that is missing or unlabeled is half of the eval rows. A missing eval split is 1,000 rows of the
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


def load_clean_data(
    arguments: DataArguments, label2id: dict[str, int] | None, *, repeat_texts: bool = False
) -> CleanData:
    """
    Load the data and give every row one use.

    Args:
        arguments ([`DataArguments`]): What to load.
        label2id (`dict[str, int]`, *optional*): The suspect's classes, to understand labels given by name; `None`
            where the labels are texts to write.
        repeat_texts (`bool`, *optional*, defaults to `False`):
            Whether a text that is there twice is also drawn twice.

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
    used = {split for found in rows.values() for split, _ in found or ()}
    table = _Table(splits, used, text_columns, label_column, label2id, arguments.dataset)

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
    if label2id is None:
        tuning = _draw(train, table, count, unusable, rng)
    else:
        tuning = _draw_balanced(train, table, count, unusable, rng, repeat_texts)
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
        "text_columns": text_columns,
        "label_column": label_column,
        **table.note,
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
    used = {split for split, _ in rows}
    table = _Table(splits, used, text_columns, label_column, label2id, arguments.dataset)
    rows = [row for row in table.labeled(rows) if table.usable(row, set())]
    if not rows:
        raise DataError(f"{arguments.dataset}: split {arguments.test_split!r} has no labeled rows: give another one.")
    return table.dataset(rows), text_columns


def tokenize(dataset: Dataset, tokenizer: Any, text_columns: list[str], max_length: int | None) -> Dataset:
    """
    The rows as `input_ids` and the like, with `labels`, cut to `max_length` tokens (default: the tokenizer's), and as
    [`Reader`] reads texts.
    """
    return Reader(tokenizer, max_length).encode(dataset, text_columns)


class _Table:
    """
    The splits as one table of rows `(split, index)`. Texts are read when asked for: a split can be large.

    Attributes:
        note (`dict`): For the report: how the labels were read.
    """

    def __init__(
        self,
        splits: DatasetDict,
        used: set[str],
        text_columns: list[str],
        label_column: str,
        label2id: dict | None,
        name: str,
    ):
        self.splits, self.text_columns, self.name, self.note = splits, text_columns, name, {}
        # A split of another kind has no labeled row.
        self._labels: dict[str, list] = {split: [None] * len(splits[split]) for split in used}
        parts = [split for split in splits if split in used]
        parts = [split for split in parts if {*text_columns, label_column} <= set(splits[split].column_names)]
        if label2id is None:
            self._labels |= {split: completions(splits[split], label_column) for split in parts}
            return
        named = {f"{name}, split {split!r}": splits[split] for split in parts}
        labels, self.note = ClassNames(label2id).read(named, label_column)
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
    texts = arguments.text_columns
    if not texts:
        texts = [name for name, feature in dataset.features.items() if name != label and _is_text(feature)]
        texts = texts if label2id is None else _texts_among(dataset, texts, label)
        if len(texts) == 2:
            texts = _known_pair(texts) or []
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


def _texts_among(dataset: Dataset, columns: list[str], label: str) -> list[str]:
    """Columns without those that say the class in other words, number the rows, or are the same in all of them."""
    rows = np.unique(np.linspace(0, max(0, len(dataset) - 1), min(len(dataset), MAX_JUDGED_ROWS)).astype(int))
    sample = dataset.select(rows.tolist()).select_columns([*columns, label])
    classes, left = list(map(str, sample[label])), list(columns)
    values = {name: sample[name][:] for name in columns}
    prose = {name for name in columns if not all(_is_one_word(value) for value in values[name])}
    for name in sorted(columns, key=lambda name: len(set(values[name]))):
        why, distinct = _why_no_text(values[name], classes), len(set(values[name]))
        if why is None and distinct == len(sample) > 1 and prose and name not in prose:
            why = "it numbers the rows"
        # The only column left is the text, but for where it is the class in other words.
        is_last = len(left) == 1 and (distinct > len(set(classes)) or 2 * distinct > len(sample))
        if why is None or is_last or (len(left) == 2 and _known_pair(left)):
            continue
        left.remove(name)
        logger.info("The column %r is not read as text: %s.", name, why)
    return left


def _why_no_text(values: list[str | None], classes: list[str]) -> str | None:
    distinct = len(set(values))
    if distinct == 1 < len(values):
        return "it is the same in all rows"
    if 2 * distinct <= len(values) and len(set(zip(values, classes, strict=True))) == distinct:
        return "it determines the class"
    return None


def _known_pair(columns: list[str]) -> list[str] | None:
    """Two columns in the order of one of the [`PAIRS`]."""
    orders = [columns, columns[::-1]]
    return next((order for order in orders if tuple(name.casefold() for name in order) in PAIRS), None)


def _is_one_word(value: str | None) -> bool:
    return value is None or re.fullmatch("[!-~]*", value) is not None


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
            drawn.setdefault(table.key(rows[i]), rows[i])
    if not drawn:
        raise DataError(f"{table.name}: the rows to tune on are also test rows, or empty: give other rows.")
    return list(drawn.values())


def _draw_balanced(
    rows: list, table: _Table, count: int, unusable: set, rng: np.random.Generator, repeat_texts: bool
) -> list:
    """Draw the same number of each class, as far as they go, then fill up from what is left; each text once."""
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
    taken = set(unusable)
    while len(drawn) < count and any(queues.values()):
        for _, queue in sorted(queues.items()):
            while queue and not table.usable(queue[-1], taken):
                queue.pop()
            if queue and len(drawn) < count:
                drawn.append(queue.pop())
                taken |= set() if repeat_texts else {table.key(drawn[-1])}
    if len({table.label(row) for row in drawn}) < 2:
        raise DataError(f"{table.name}: the rows to tune on are also test rows, or empty: give other rows.")
    return drawn


def _described(rows: list[tuple[str, int]], splits: DatasetDict) -> str:
    counts = Counter(split for split, _ in rows)
    return ", ".join(
        split if count == len(splits[split]) else f"{split} ({count:,} of {len(splits[split]):,})"
        for split, count in sorted(counts.items())
    )
