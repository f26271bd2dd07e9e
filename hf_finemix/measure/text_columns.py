"""Which columns of a dataset are its texts, and which one holds their class."""

import logging
import re
from typing import Any

import numpy as np
from datasets import Dataset, Value

from ..errors import DataError
from .arguments import TestDataArguments

logger = logging.getLogger(__name__)

# Two columns that are known to be a pair, in the order in which models read them.
PAIRS = [("premise", "hypothesis"), ("question", "sentence"), ("sentence1", "sentence2"), ("question1", "question2")]
PAIRS += [("sentence_a", "sentence_b"), ("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair")]
PAIRS += [("query", "passage"), ("query", "document"), ("question", "passage"), ("claim", "evidence")]
# Rows that are looked at to tell texts from ids and names of classes.
MAX_JUDGED_ROWS = 10_000


def find_columns(
    dataset: Dataset, arguments: TestDataArguments, label2id: dict[str, int] | None
) -> tuple[list[str], str]:
    """The text columns, one or the two of a pair, and the label column: as they were named, or the ones there are."""
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
