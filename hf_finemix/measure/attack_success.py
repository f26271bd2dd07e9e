"""Measuring a classifier: ACC and macro-F1 on clean samples, ASR once a trigger is in."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from .metrics import accuracy, macro_f1


@dataclass(frozen=True)
class TriggeredSamples:
    """
    Triggered samples whose right answer is not the attacker's.

    Attributes:
        name (`str`): The trigger's text, or the file's name.
        position (`str`): Where the trigger was put, or `"in the file"`.
        target (`dict`): What the attacker wants, for the report.
        repeats (`list[Dataset]`): The same samples with other random places, tokenized.
        unreadable (`int`): Samples that are not among them, as the model would not read the trigger.
        rate (`Callable[[Trainer, Dataset], float]`): The share of a repeat in which the attacker succeeds.
    """

    name: str
    position: str
    target: dict[str, Any]
    repeats: list[Dataset]
    unreadable: int
    rate: Callable[[Trainer, Dataset], float]

    def success(self, trainer: Trainer) -> dict[str, Any]:
        """
        Of the trainer's present model: `trigger`, `position`, the target, `asr` (a fraction, the mean over repeats),
        `n`, `unreadable` (samples that are too long, and in neither) and `repeats`.
        """
        return {
            "trigger": self.name,
            "position": self.position,
            **self.target,
            "asr": float(np.mean([self.rate(trainer, repeat) for repeat in self.repeats])),
            "n": len(self.repeats[0]),
            "unreadable": self.unreadable,
            "repeats": len(self.repeats),
        }


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


@contextmanager
def predictor(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Iterator[Trainer]:
    """
    A Trainer that only predicts, to [`measure`] a model with. The settings are those of `TrainingArguments`; without
    an accelerator `use_cpu` is set.
    """
    with tempfile.TemporaryDirectory() as folder:
        usual: dict[str, Any] = {"dataloader_pin_memory": False, "report_to": "none"}
        usual["use_cpu"] = not torch.accelerator.is_available()
        trainer = Trainer(model, TrainingArguments(folder, **{**usual, **settings}), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        yield trainer


def measure(trainer: Trainer, test: Dataset, attacks: Sequence[TriggeredSamples]) -> dict[str, Any]:
    """
    Of the trainer's present model on tokenized samples with `labels`: `accuracy`, `macro_f1` (fractions), `n`, and
    `triggers`, of each its [`TriggeredSamples.success`].
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
