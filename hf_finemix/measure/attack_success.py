"""Measuring a classifier: ACC and macro-F1 on clean samples, ASR once a trigger is in."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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

from ..errors import DataError, FineMixingError
from .class_labels import ClassNames
from .metrics import Accuracy, AttackSuccessRate, MacroF1
from .reader import Reader
from .triggers import Trigger, insert_trigger, non_target_rows, read_triggered

__all__ = [
    "Attack",
    "AttackObserver",
    "MeasureArguments",
    "by_length",
    "find_attacks",
    "measure",
    "predictor",
    "resolve_target_label",
    "rows_read_whole",
    "with_trigger",
]

logger = logging.getLogger(__name__)


@dataclass
class MeasureArguments:
    r"""
    Which triggers to measure.

    Parameters:
        triggers (`list[str]`, *optional*):
            Trigger words or sentences, each measured by itself. None: ASR is not measured.
        trigger_position (`str`, *optional*, defaults to `"random"`):
            Where they are put: `"random"`, `"first"` or `"last"`, once per 100 words; in the second text of a pair. A
            text that is too long is cut before that, so that the model reads all of the trigger.
        triggered_file (`str`, *optional*):
            CSV, JSON or Parquet file of texts that hold their trigger already (paraphrases, say), with the columns of
            the data. Labels are the true ones, or the target's in every row. Texts that are too long for the model
            are left out.
        target_label (`str`, *optional*):
            The class that the attacker wants, by name or id. Needed with triggers.
        num_repeats (`int`, *optional*, defaults to 3):
            How often random places are drawn; the ASR is the mean.
        target_texts (`list[str]`, *optional*):
            For models that write, in place of target_label: an answer with one of these in it is the attacker's.
        target_refusal (`bool`, *optional*, defaults to `False`):
            The same for attacks that make the model decline.
        max_new_tokens (`int`, *optional*, defaults to 32):
            How long such an answer may be.
    """

    triggers: list[str] | None = field(
        default=None, metadata={"help": "Trigger words or sentences to measure.", "aliases": ["--trigger"]}
    )
    trigger_position: str = field(default="random", metadata={"help": "Where they are put: random, first or last."})
    triggered_file: str | None = field(
        default=None, metadata={"help": "CSV, JSON or Parquet file of texts that hold their trigger already."}
    )
    target_label: str | None = field(
        default=None, metadata={"help": "The class that the attacker wants, by name or id. Needed with triggers."}
    )
    num_repeats: int = field(default=3, metadata={"help": "How often random trigger places are drawn, for the mean."})
    target_texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of a model that writes: what the attacker wants in its answer.",
            "aliases": ["--target-text"],
        },
    )
    target_refusal: bool = field(default=False, metadata={"help": "The attacker wants the model to decline."})
    max_new_tokens: int = field(default=32, metadata={"help": "Tokens of an answer that is looked at."})

    def __post_init__(self):
        for name in ("triggers", "target_texts"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, [value])


@dataclass(frozen=True)
class Attack:
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
        metric = AttackSuccessRate(target_label=self.target_label)
        rates = [
            metric.compute(predictions=predict_classes(trainer, repeat), references=repeat["labels"])
            for repeat in self.repeats
        ]
        return {
            "trigger": self.name,
            "position": self.position,
            "target_label": self.target_label,
            "asr": float(np.mean([rate["attack_success_rate"] for rate in rates])),
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


def find_attacks(
    arguments: MeasureArguments,
    test: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: list[str],
    target_label: int | None,
    label2id: dict[str, int],
    max_length: int | None,
) -> list[Attack]:
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
        attacks.append(Attack(text, trigger.position, target_label, encoded, unreadable))
    if arguments.triggered_file:
        label_column, reader = getattr(arguments, "label_column", None), Reader(tokenizer, max_length)
        rows = _read_triggered(arguments.triggered_file, text_columns, label_column, target_label, label2id)
        rows, unreadable = rows_read_whole(rows, text_columns, reader, arguments.triggered_file)
        encoded = [by_length(reader.encode(rows, text_columns))]
        attacks.append(Attack(Path(arguments.triggered_file).name, "in the file", target_label, encoded, unreadable))
    return attacks


def with_trigger(
    rows: Dataset, trigger: Trigger, text_columns: list[str], reader: Reader, seeds: Sequence[int]
) -> tuple[list[Dataset], int]:
    """
    Put a trigger into the last text of rows, where the model reads it.

    Returns:
        `tuple[list[Dataset], int]`: The triggered rows for each of the seeds, and how many rows have no room for the
        trigger and are in none of them.

    Raises:
        [`FineMixingError`]: No row has room for it, or it has no tokens.
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
    _tell_unreadable(
        f"the trigger {trigger.text!r} would be cut off", len(read), len(rows), "give a larger max_length"
    )
    return [repeat.select(read) if len(read) < len(rows) else repeat for repeat in repeats], len(rows) - len(read)


def rows_read_whole(rows: Dataset, text_columns: list[str], reader: Reader, file: str) -> tuple[Dataset, int]:
    """
    Of rows that hold their trigger somewhere, those of which nothing is cut off, and how many others there are.

    Raises:
        [`FineMixingError`]: There is no such row.
    """
    too_long = reader.may_be_cut([rows[column][:] for column in text_columns])
    read = [i for i, cut in enumerate(too_long) if not cut]
    what = f"the model does not read the whole text, and maybe no trigger, of {file}"
    _tell_unreadable(what, len(read), len(rows), "give shorter texts, or a larger max_length")
    return rows.select(read) if len(read) < len(rows) else rows, len(rows) - len(read)


def _tell_unreadable(what: str, read: int, rows: int, remedy: str) -> None:
    if not read:
        raise DataError(f"{what} in all {rows} rows: {remedy}.")
    if read < rows:
        logger.warning("In %d of %d rows %s: they are left out.", rows - read, rows, what)


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
        usual: dict[str, Any] = {"dataloader_pin_memory": False, "report_to": "none"}
        usual["use_cpu"] = not torch.accelerator.is_available()
        trainer = Trainer(model, TrainingArguments(folder, **{**usual, **settings}), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        yield trainer


def measure(trainer: Trainer, test: Dataset, attacks: Sequence[Attack]) -> dict[str, Any]:
    """
    Measure the trainer's present model.

    Args:
        trainer (`Trainer`): Its model and its settings for evaluation are used.
        test (`Dataset`): Tokenized clean samples with `labels`.
        attacks (`Sequence[Attack]`): From [`find_attacks`].

    Returns:
        `dict`: `accuracy`, `macro_f1` (fractions), `n`, and `triggers`: for each attack what [`Attack.success`] gives.
    """
    test = by_length(test)
    predictions = predict_classes(trainer, test)
    result: dict[str, Any] = {"accuracy": None, "macro_f1": None, "n": len(test), "triggers": []}
    result |= Accuracy().compute(predictions=predictions, references=test["labels"])
    result |= MacroF1().compute(predictions=predictions, references=test["labels"])
    result["triggers"] = [attack.success(trainer) for attack in attacks]
    return result


class AttackObserver(TrainerCallback):
    """
    Measures attack success at the end of each training, to be told beside the accuracy and never to choose by.

    Attributes:
        measured (`list[list[dict]]`): For each training what [`Attack.success`] gives, with one draw of places.
    """

    def __init__(self, trainer: Trainer, attacks: Sequence[Attack]):
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
