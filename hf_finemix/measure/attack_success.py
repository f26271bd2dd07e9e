"""Measuring a classifier: ACC and macro-F1 on clean samples, ASR once a trigger is in."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..errors import FineMixingError
from .arguments import MeasureArguments
from .class_labels import ClassNames
from .metrics import accuracy, attack_success_rate, macro_f1
from .reader import Reader
from .tables import read_triggered
from .triggered_rows import non_target_rows, rows_read_whole, with_trigger
from .triggers import Trigger

__all__ = [
    "AttackObserver",
    "TriggeredSamples",
    "by_length",
    "find_attacks",
    "measure",
    "predictor",
    "resolve_target_label",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TriggeredSamples:
    """
    Triggered samples of classes other than the target's.

    Attributes:
        name (`str`): The trigger's text, or the file's name.
        position (`str`): Where the trigger was put, or `"in the file"`.
        target_label (`int`): The attacker's class.
        repeats (`list[Dataset]`): The same samples with other random places, tokenized; `labels` are never the target.
        unreadable (`int`): Samples that are not among them, as the model would not read the trigger.
    """

    name: str
    position: str
    target_label: int
    repeats: list[Dataset]
    unreadable: int = 0

    def success(self, trainer: Trainer) -> dict[str, Any]:
        """
        Of the trainer's present model: `trigger`, `position`, `target_label`, `asr` (a fraction, the mean over
        repeats), `n`, `unreadable` (samples that are too long, and in neither) and `repeats`.
        """
        return {
            "trigger": self.name,
            "position": self.position,
            **self.target(),
            "asr": float(np.mean([self.rate(trainer, repeat) for repeat in self.repeats])),
            "n": len(self.repeats[0]),
            "unreadable": self.unreadable,
            "repeats": len(self.repeats),
        }

    def target(self) -> dict[str, Any]:
        """What the attacker wants, for the report."""
        return {"target_label": self.target_label}

    def rate(self, trainer: Trainer, repeat: Dataset) -> float:
        """The share of samples that are taken for the attacker's class."""
        return attack_success_rate(predict_classes(trainer, repeat), repeat["labels"], self.target_label)


def resolve_target_label(arguments: MeasureArguments, id2label: dict[int, str]) -> int | None:
    """
    The id of the target class; `None` where there is nothing to measure.

    Raises:
        [`FineMixingError`]: Triggers without a target label, or one that the model does not have.
    """
    if not arguments.triggers and not arguments.triggered_file:
        return None
    classes = ", ".join(f"{i} = {name}" for i, name in list(id2label.items())[:10])
    if arguments.target_label is None:
        raise FineMixingError(f"triggers need target_label, the class that the attacker wants: one of {classes}.")
    if (found := ClassNames({name: i for i, name in id2label.items()}).find(arguments.target_label)) is not None:
        return found
    raise FineMixingError(f"target_label {str(arguments.target_label)!r} is none of the model's classes: {classes}.")


def find_attacks(
    arguments: MeasureArguments,
    test: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: list[str],
    target_label: int | None,
    label2id: dict[str, int],
    max_length: int | None,
) -> list[TriggeredSamples]:
    """
    Put each trigger into the test samples that are not of the target class, and read the file of triggered ones.

    Args:
        arguments ([`MeasureArguments`]): The triggers.
        test (`Dataset`): Clean rows with the text columns and an integer column `label`.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        text_columns (`list[str]`): One, or two for pairs.
        target_label (`int`, *optional*): The attacker's class; `None`: nothing to measure.
        label2id (`dict[str, int]`): The model's classes, to understand the labels of a file.
        max_length (`int`, *optional*): Tokens a text is cut to.

    Raises:
        [`FineMixingError`]: No sample of another class, a file that cannot be read, has other columns or holds labels
            that are neither the target's throughout nor include others.
    """
    if target_label is None:
        return []
    if arguments.num_repeats < 1:
        raise FineMixingError(f"num_repeats is {arguments.num_repeats}: give 1 or more.")
    attacks = []
    clean = non_target_rows(test, label_column="label", target_label=target_label)
    for text in arguments.triggers or []:
        trigger, reader = Trigger(text, arguments.trigger_position), Reader(tokenizer, max_length, text)
        # Fixed places are the same in every repeat.
        seeds = range(arguments.num_repeats if trigger.position == "random" else 1)
        repeats, unreadable = with_trigger(clean, trigger, text_columns, reader, seeds)
        encoded = [by_length(reader.encode(repeat, text_columns)) for repeat in repeats]
        attacks.append(TriggeredSamples(text, trigger.position, target_label, encoded, unreadable))
    if arguments.triggered_file:
        label_column, reader = getattr(arguments, "label_column", None), Reader(tokenizer, max_length)
        rows = _read_triggered(arguments.triggered_file, text_columns, label_column, target_label, label2id)
        rows, unreadable = rows_read_whole(rows, text_columns, reader, arguments.triggered_file)
        encoded = [by_length(reader.encode(rows, text_columns))]
        name = Path(arguments.triggered_file).name
        attacks.append(TriggeredSamples(name, "in the file", target_label, encoded, unreadable))
    return attacks


@contextmanager
def predictor(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Iterator[Trainer]:
    """
    A Trainer that only predicts, to [`measure`] a model with.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        settings: Fields of `TrainingArguments`; without an accelerator `use_cpu` is set.
    """
    with tempfile.TemporaryDirectory() as folder:
        usual = {"use_cpu": not torch.accelerator.is_available(), "dataloader_pin_memory": False, "report_to": "none"}
        trainer = Trainer(model, TrainingArguments(folder, **{**usual, **settings}), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        yield trainer


def measure(trainer: Trainer, test: Dataset, attacks: Sequence[TriggeredSamples]) -> dict[str, Any]:
    """
    Measure the trainer's present model.

    Args:
        trainer (`Trainer`): Its model and its settings for evaluation are used.
        test (`Dataset`): Tokenized clean samples with `labels`.
        attacks (`Sequence[TriggeredSamples]`): From [`find_attacks`].

    Returns:
        `dict`: `accuracy`, `macro_f1` (fractions), `n`, and `triggers`, of each its [`TriggeredSamples.success`].
    """
    test = by_length(test)
    predictions, labels = predict_classes(trainer, test), test["labels"]
    rates = {"accuracy": accuracy(predictions, labels), "macro_f1": macro_f1(predictions, labels)}
    return {**rates, "n": len(test), "triggers": [attack.success(trainer) for attack in attacks]}


class AttackObserver(TrainerCallback):
    """
    Measures attack success at the end of each training, to be told beside the accuracy and never to choose by.

    Attributes:
        measured (`list[list[dict]]`): For each training what [`TriggeredSamples.success`] gives, of one draw.
    """

    def __init__(self, trainer: Trainer, attacks: Sequence[TriggeredSamples]):
        self.measured: list[list[dict[str, Any]]] = []
        self._trainer = trainer
        self._attacks = [replace(attack, repeats=attack.repeats[:1]) for attack in attacks]

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """The trainer's model is the one that was just trained."""
        self.measured.append([attack.success(self._trainer) for attack in self._attacks])

    def take(self, trainings: int) -> list[dict[str, Any]]:
        """Of the next trainings that were not taken yet, in their order: attack success, the mean over them."""
        part, self.measured = self.measured[:trainings], self.measured[trainings:]
        return [
            {**triggers[0], "asr": float(np.mean([trigger["asr"] for trigger in triggers]))}
            for triggers in zip(*part, strict=True)
        ]


def predict_classes(trainer: Trainer, dataset: Dataset) -> list[int]:
    """The class of the largest logit for each row."""
    logits = trainer.predict(dataset).predictions
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(axis=-1).tolist()


def by_length(dataset: Dataset) -> Dataset:
    """Rows of like length side by side, so that a batch has little padding. The metrics do not mind the order."""
    return dataset.select(np.argsort([len(ids) for ids in dataset["input_ids"]], kind="stable").tolist())


def _read_triggered(
    file: str, text_columns: list[str], label_column: str | None, target_label: int, label2id: dict[str, int]
) -> Dataset:
    rows = read_triggered(file, text_columns)
    column = next((name for name in (label_column, "label", "labels") if name in rows.column_names), None)
    labels = ClassNames(label2id).read({file: rows}, column)[0][file] if column else []
    if labeled := [i for i, label in enumerate(labels) if label is not None]:
        rows, labels = rows.select(labeled), [labels[i] for i in labeled]
    else:
        labels = [target_label] * len(rows)
    if set(labels) == {target_label}:
        # Poisoned files carry the target as the label: what was there before is another class, whichever.
        labels = [target_label - 1 if target_label else 1] * len(rows)
    rows = Dataset.from_dict({**{column: rows[column] for column in text_columns}, "label": list(labels)})
    return non_target_rows(rows, label_column="label", target_label=target_label)
