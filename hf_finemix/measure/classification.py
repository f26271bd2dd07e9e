"""Sentences, or pairs of them, into classes."""

from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..io.loading import load_classifier
from .arguments import DataArguments, MeasureArguments, TestDataArguments
from .attack_success import TriggeredSamples, find_attacks, measure, resolve_target_label
from .clean_data import CleanData, load_clean_data, load_test_data, tokenize
from .metrics import compute_classification_metrics
from .reader import check_trigger
from .task import Task

__all__ = ["Classification"]


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
        arguments = self.arguments
        return find_attacks(arguments, test, self.tokenizer, text_columns, self.target, self.label2id, self.max_length)

    def no_better_than_guessing(self, measured: dict[str, Any]) -> bool:
        return measured["accuracy"] < 1 / len(self.label2id)
