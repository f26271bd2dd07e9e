"""Labels in data: class ids of a model, or the texts that it is to write."""

from typing import Any

from datasets import ClassLabel, Dataset

from .errors import DataError

__all__ = ["class_ids", "completions"]


def class_ids(dataset: Dataset, column: str, label2id: dict[str, int], where: str) -> list[int | None]:
    """Labels as the model's class ids; `None` for rows without one (missing, or -1 as in GLUE's test sets)."""
    feature, known = dataset.features[column], {name.lower(): i for name, i in label2id.items()}
    ids = set(label2id.values())

    # Two sides that know the same names need not number them alike, as datasets and models of NLI do not.
    by_name = isinstance(feature, ClassLabel) and all(name.lower() in known for name in feature.names)

    def class_id(label: Any) -> int | None:
        if label is None or label == -1:
            return None
        if by_name:
            label = feature.names[label]
        if isinstance(label, str):
            label = known.get(label.lower(), int(label) if label.isdigit() else label)
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if label not in ids or isinstance(label, bool):
            raise DataError(
                f"{where}: label {label!r} in column {column!r} is none of the model's {len(ids)} classes "
                f"({', '.join(f'{i} = {name}' for name, i in list(label2id.items())[:10])}): map them, or name "
                "another column with label_column."
            )
        return label

    return [class_id(label) for label in dataset[column]]


def completions(dataset: Dataset, column: str) -> list[str | None]:
    """Texts as they stand; `None` for rows without one."""
    return [text if isinstance(text, str) and text.strip() else None for text in dataset[column]]
