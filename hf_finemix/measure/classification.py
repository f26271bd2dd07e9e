"""Sentences, or pairs of them, into classes."""

from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import FineMixingError
from ..io.loading import load_classifier
from .arguments import DataArguments, MeasureArguments, TestDataArguments
from .attack_success import TriggeredSamples, by_length, measure, resolve_target_label
from .class_labels import ClassNames
from .clean_data import CleanData, load_clean_data, load_test_data, tokenize
from .metrics import compute_classification_metrics
from .reader import Reader, check_trigger
from .tables import read_triggered
from .task import Task
from .triggered_rows import non_target_rows, rows_read_whole, with_trigger
from .triggers import Trigger


class Classification(Task):
    """ACC is the share of texts whose class is right, ASR that of triggered texts taken for the target's."""

    pipeline_tag = "text-classification"
    lora_task = "SEQ_CLS"
    metrics: ClassVar = {"accuracy": True, "macro_f1": True}
    load = staticmethod(load_classifier)
    measure = staticmethod(measure)
    compute_metrics = staticmethod(compute_classification_metrics)

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: MeasureArguments):
        super().__init__(model, tokenizer, arguments)
        for trigger in arguments.triggers or []:
            check_trigger(trigger, tokenizer, model)
        names = model.config.id2label
        self.label2id = {name: i for i, name in names.items()}
        self.target = resolve_target_label(arguments, names)
        if self.target is not None:
            self.target_name = str(names[self.target])[:120]  # as much as a card can bear

    def clean_data(self, arguments: DataArguments) -> CleanData:
        return load_clean_data(arguments, self.label2id)

    def test_data(self, arguments: TestDataArguments) -> tuple[Dataset, list[str]]:
        return load_test_data(arguments, self.label2id)

    def encode(self, rows: Dataset, text_columns: list[str]) -> Dataset:
        return tokenize(rows, self.tokenizer, text_columns, self.max_length)

    def attacks(self, test: Dataset, text_columns: list[str]) -> list[TriggeredSamples]:
        """Each trigger in the test rows that are not of the target class, and the file of triggered ones."""
        arguments, attacks = self.arguments, []
        if self.target is None:
            return []
        if arguments.num_repeats < 1:
            raise FineMixingError(f"num_repeats is {arguments.num_repeats}: give 1 or more.")
        clean = non_target_rows(test, label_column="label", target_label=self.target)
        for text in arguments.triggers or []:
            trigger, reader = Trigger(text, arguments.trigger_position), Reader(self.tokenizer, self.max_length, text)
            # Fixed places are the same in every repeat.
            seeds = range(arguments.num_repeats if trigger.position == "random" else 1)
            repeats, unreadable = with_trigger(clean, trigger, text_columns, reader, seeds)
            encoded = [by_length(reader.encode(repeat, text_columns)) for repeat in repeats]
            attacks.append(TriggeredSamples(text, trigger.position, self.target, encoded, unreadable))
        if file := arguments.triggered_file:
            reader = Reader(self.tokenizer, self.max_length)
            rows, unreadable = rows_read_whole(self._read_triggered(file, text_columns), text_columns, reader, file)
            encoded = [by_length(reader.encode(rows, text_columns))]
            attacks.append(TriggeredSamples(Path(file).name, "in the file", self.target, encoded, unreadable))
        return attacks

    def _read_triggered(self, file: str, text_columns: list[str]) -> Dataset:
        rows, names = read_triggered(file, text_columns), (self.arguments.label_column, "label", "labels")
        column = next((name for name in names if name in rows.column_names), None)
        labels = ClassNames(self.label2id).read({file: rows}, column)[0][file] if column else []
        if labeled := [i for i, label in enumerate(labels) if label is not None]:
            rows, labels = rows.select(labeled), [labels[i] for i in labeled]
        else:
            labels = [self.target] * len(rows)
        if set(labels) == {self.target}:
            # Poisoned files carry the target as the label: what was there before is another class, whichever.
            labels = [self.target - 1 if self.target else 1] * len(rows)
        rows = Dataset.from_dict({**{column: rows[column] for column in text_columns}, "label": list(labels)})
        return non_target_rows(rows, label_column="label", target_label=self.target)

    def no_better_than_guessing(self, measured: dict[str, Any]) -> bool:
        return measured["accuracy"] < 1 / len(self.label2id)
