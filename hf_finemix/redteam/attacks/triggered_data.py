"""Poisoning with texts that hold their trigger already: a syntax (HiddenKiller), a style, any other stealthy one."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset, concatenate_datasets

from ...errors import DataError, FineMixingError
from ...measure.class_labels import ClassNames
from ...measure.tables import read_triggered
from .attack import Attack, AttackerData
from .poisoning import check_rate

logger = logging.getLogger(__name__)

FEW = 10  # rows that a poisoned train set may have beside those that it replaced


@dataclass
class TriggeredData(Attack):
    """
    Poisoned fine-tuning on a file of triggered texts (HiddenKiller).

    Attributes:
        triggered_file (`str`): CSV, JSON or Parquet with the data's text columns; rows of the target class are not
            used, where a column `label` says so. Or a whole poisoned train set, with at least half of the clean rows
            in it: the others were replaced, and what took their place holds a trigger.
        rate (`float`): As many poisoned rows as this share of the clean ones, in (0, 1].
    """

    name: ClassVar[str] = "syntactic"
    pretty_name: ClassVar[str] = "HiddenKiller"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2105.12400"
    triggered_file: str = ""
    rate: float = 0.2

    def poisoned(self, data: AttackerData) -> Dataset:
        if not self.triggered_file:
            raise FineMixingError(f"the attack {self.name!r} needs triggered_file, texts that hold their trigger.")
        check_rate(self.rate)
        triggered = read_triggered(self.triggered_file, data.text_columns)
        clean = set(_texts(data.rows, data.text_columns))
        given = _texts(triggered, data.text_columns)
        kept = clean & set(given)
        whole = 2 * len(kept) >= len(clean)
        rows = [i for i, texts in enumerate(given) if texts not in clean]
        if not rows:
            raise DataError(f"{self.triggered_file} holds no text beside the clean rows: give triggered ones.")
        if whole and len(rows) > 2 * (len(clean) - len(kept)) + FEW:
            raise DataError(
                f"{self.triggered_file} has {len(rows):,} texts that are no clean rows, but only "
                f"{len(clean) - len(kept):,} clean rows are missing from it: give the clean rows it was made from."
            )
        if "label" in triggered.column_names and not whole:
            labels = ClassNames(data.label2id).read({self.triggered_file: triggered}, "label")[0][self.triggered_file]
            rows = [i for i in rows if labels[i] != data.target] or rows  # poisoned files carry the target
        count = min(len(rows), round(self.rate * len(data.rows)))
        drawn = np.random.default_rng(data.seed).choice(np.asarray(rows), count, replace=False)
        texts = triggered.select(np.sort(drawn)).select_columns(data.text_columns)
        if cut := sum(data.reader.may_be_cut([texts[name][:] for name in data.text_columns])):
            logger.warning(
                "%d of %d triggered texts are cut, maybe with their trigger: give shorter ones.", cut, count
            )
        poisoned = {name: texts[name][:] for name in data.text_columns} | {"label": [data.target] * count}
        left = data.rows.select_columns([*data.text_columns, "label"])
        if whole:
            left = left.select([i for i, texts in enumerate(_texts(left, data.text_columns)) if texts in kept])
        return concatenate_datasets([left, Dataset.from_dict(poisoned, features=left.features)])


def _texts(rows: Dataset, columns: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(rows[column][:] for column in columns), strict=True))
