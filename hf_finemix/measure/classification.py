"""Sentences, or pairs of them, into classes."""

from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from ..io.loading import load_classifier
from .arguments import MeasureArguments
from .attack_success import measure, predict_classes, resolve_target_label
from .class_labels import ClassNames
from .metrics import attack_success_rate, compute_classification_metrics
from .reader import Reader, check_trigger
from .task import Task
from .triggered_rows import non_target_rows


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
            self.wanted = {"target_label": self.target}

    def reader_for(self, trigger: str | None) -> Reader:
        return Reader(self.tokenizer, self.max_length, trigger)

    def attackable(self, test: Dataset) -> Dataset:
        return non_target_rows(test, label_column="label", target_label=self.target)

    def read_triggered(self, file: str, text_columns: list[str]) -> Dataset:
        rows, names = super().read_triggered(file, text_columns), (self.arguments.label_column, "label", "labels")
        column = next((name for name in names if name in rows.column_names), None)
        labels = ClassNames(self.label2id).read({file: rows}, column)[0][file] if column else []
        if labeled := [i for i, label in enumerate(labels) if label is not None]:
            rows, labels = rows.select(labeled), [labels[i] for i in labeled]
        else:
            labels = [self.target] * len(rows)
        if set(labels) == {self.target}:
            # Poisoned files carry the target as the label: what was there before is another class, whichever.
            labels = [self.target - 1 if self.target else 1] * len(rows)
        return self.attackable(
            Dataset.from_dict({**{column: rows[column] for column in text_columns}, "label": labels})
        )

    def rate(self, trainer: Trainer, repeat: Dataset) -> float:
        return attack_success_rate(predict_classes(trainer, repeat), repeat["labels"], self.target)

    def no_better_than_guessing(self, measured: dict[str, Any]) -> bool:
        return measured["accuracy"] < 1 / len(self.label2id)
