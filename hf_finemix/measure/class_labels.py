"""Labels in data: class ids of a model, or the texts that it is to write."""

import logging
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from ..errors import DataError
from .notes import said_by_number

logger = logging.getLogger(__name__)

MAX_CLASSES = 10_000


@dataclass(frozen=True)
class _Label:
    """One value of a label column."""

    text: str  # as a name, without the spaces around it
    number: int | None  # as that of a class; `None` where it is no whole number
    is_name: bool  # whether it says more than a number does
    shown: str  # for messages


class ClassNames:
    """
    A model's classes, and which of them the labels of data stand for: by name all of them, or by number all of them.

    Names count whatever their case and the spaces around them, and before numbers: there are models whose class 0 is
    called "1". Missing values, empty texts and -1 (as in GLUE's test sets) are no labels.
    """

    def __init__(self, label2id: dict[str, int]):
        self._ids = set(label2id.values())
        self._names = {_folded(name): i for name, i in label2id.items()}
        self._names |= {name.strip(): i for name, i in label2id.items()}
        shown = [f"{i} = {name}" for name, i in list(label2id.items())[:10]]
        self.shown = ", ".join(shown) + (", …" if len(label2id) > len(shown) else "")

    def find(self, value: Any) -> int | None:
        """The class of one value, by name or else by number; `None` where there is none."""
        label = _label(value)
        named = label and self._named(label)
        return label and self._numbered(label) if named is None else named

    def read(self, parts: dict[str, Dataset], column: str) -> tuple[dict[str, list[int | None]], dict[str, Any]]:
        """
        The labels of a column as class ids, in all parts by the same rule; `None` for rows without one.

        And for the report `labels` (`"by name"` or `"by number"`) and, where the model knows none of the names in the
        data, `unknown_class_names`. A [`DataError`] for several labels a row, a label that is no class, or names of
        which the model knows some only.
        """
        labels = {where: self._labeled(_labels(part, column)) for where, part in parts.items()}
        named = {where for where, found in labels.items() if any(label and label.is_name for label in found)}
        class_of: dict[_Label, int] = {}
        note: dict[str, Any] = {"labels": "by name"}
        for group in (named, labels.keys() - named):  # one split may have names and another one numbers
            used = {label: where for where in sorted(group) for label in labels[where] if label is not None}
            class_of |= self._classes(used, column, note)
        if note.get("unknown_class_names"):
            logger.warning("%s", said_by_number(note))
        return {where: [label and class_of[label] for label in found] for where, found in labels.items()}, note

    def _classes(self, used: dict[_Label, str], column: str, note: dict[str, Any]) -> dict[_Label, int]:
        """The class of each label, all by name or all by number; which of them is noted."""
        unknown = [label for label in used if self._named(label) is None]
        if not unknown:
            return {label: self._named(label) for label in used}
        names = [label.text for label in sorted(used, key=lambda label: label.number or 0) if label.is_name]
        if names and len(unknown) < len(used):
            raise DataError(
                f"{used[unknown[0]]}: of the classes in column {column!r} the model ({self.shown}) does not know "
                f"{', '.join(label.shown for label in unknown[:10])}: rename or remove them, or name another column "
                "with label_column."
            )
        for label, where in used.items():
            if self._numbered(label) is None:
                raise DataError(
                    f"{where}: label {label.shown} in column {column!r} is none of the model's {len(self._ids)} "
                    f"classes ({self.shown}): map them, or name another column with label_column."
                )
        note["labels"] = "by number"
        if names:
            note["unknown_class_names"] = names[:20]
        return {label: self._numbered(label) for label in used}

    def _named(self, label: _Label) -> int | None:
        spellings = [label.text, _folded(label.text)] + ([] if label.is_name else [str(label.number)])
        return next((self._names[name] for name in spellings if name in self._names), None)

    def _numbered(self, label: _Label) -> int | None:
        return label.number if label.number in self._ids else None

    def _labeled(self, labels: list[_Label | None]) -> list[_Label | None]:
        """A text "-1" is a label where a class is called so."""
        unlabeled = {label for label in labels if label and label.number == -1}
        unlabeled = {label for label in unlabeled if label.shown.startswith("-") or self._named(label) is None}
        return [None if label in unlabeled else label for label in labels] if unlabeled else labels


def class_names(dataset: Dataset, column: str) -> list[str]:
    """Names for the classes of a column, in the order of their ids: its own, or `LABEL_0`, …"""
    if isinstance(feature := dataset.features[column], ClassLabel):
        return feature.names
    found = {label for label in _labels(dataset, column) if label and label.number != -1}
    if all(not label.is_name and label.number is not None and 0 <= label.number < MAX_CLASSES for label in found):
        return [f"LABEL_{i}" for i in range(max((label.number for label in found), default=-1) + 1)]
    return sorted({_folded(text): text for text in sorted(label.text for label in found)}.values())


def completions(dataset: Dataset, column: str) -> list[str | None]:
    """Texts as they stand; `None` for rows without one."""
    texts = dataset[column][:]
    _refuse_lists(texts, column)
    return [text if isinstance(text, str) and text.strip() else None for text in texts]


def _labels(dataset: Dataset, column: str) -> list[_Label | None]:
    """`None` for rows without a value."""
    feature, values = dataset.features[column], dataset[column][:]
    _refuse_lists(values, column)
    if isinstance(feature, ClassLabel):
        members = [_Label(name, i, True, repr(name)) for i, name in enumerate(feature.names)]
        return [None if value is None or value < 0 else members[value] for value in values]
    known: dict[tuple[type, Any], _Label | None] = {}  # True is 1 to a dict
    for value in values:
        if (type(value), value) not in known:
            known[type(value), value] = _label(value)
    return [known[type(value), value] for value in values]


def _label(value: Any) -> _Label | None:
    text = "" if value is None else str(value).strip()
    if not text or (text == "nan" and isinstance(value, float)):
        return None
    if text.casefold() in ("true", "false"):
        return _Label(text, int(text.casefold() == "true"), True, repr(value))
    try:
        number = int(float(text)) if float(text).is_integer() else None
    except ValueError:
        number = None
    return _Label(text, number, isinstance(value, str) and number is None, repr(value))


def _refuse_lists(values: list[Any], column: str) -> None:
    if any(isinstance(value, (list, dict)) for value in values):
        raise DataError(
            f"column {column!r} holds lists, several labels a row: give a column of one label a row as label_column."
        )


def _folded(name: str) -> str:
    return name.strip().casefold()
