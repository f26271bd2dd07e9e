"""What clean and evaluate ask of a task."""

from typing import Any, ClassVar

from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from ..io.folder import LocalModel
from ..io.loading import max_tokens
from .arguments import DataArguments, MeasureArguments, TestDataArguments
from .attack_success import TriggeredSamples
from .clean_data import CleanData


class Task:
    """
    One task, for one model and its tokenizer.

    Args:
        model (`PreTrainedModel`): Of the task.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        arguments ([`MeasureArguments`] and [`TestDataArguments`]): Which triggers, which data.

    Attributes:
        pipeline_tag (`str`): The Hub's name for it.
        lora_task (`str`): peft's name for it.
        target_name (`str`, *optional*): What the attacker wants, in words; `None` where no attack is measured.
        collator (`Any`): For the Trainer; `None` for its own.
        metrics (`dict[str, bool]`): What [`compute_metrics`] gives, and whether more of it is better.
    """

    pipeline_tag: ClassVar[str]
    lora_task: ClassVar[str]
    target_name: str | None = None
    collator: Any = None
    metrics: ClassVar[dict[str, bool]]

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: MeasureArguments):
        self.tokenizer, self.arguments = tokenizer, arguments
        self.max_length = max_tokens(arguments.max_length, tokenizer, model)

    @staticmethod
    def load(source: LocalModel) -> PreTrainedModel:
        """The model of a folder in float32, without running or trusting anything in it."""
        raise NotImplementedError

    def clean_data(self, arguments: DataArguments) -> CleanData:
        """Which rows serve for what."""
        raise NotImplementedError

    def test_data(self, arguments: TestDataArguments) -> tuple[Dataset, list[str]]:
        """The test rows alone, and their text columns."""
        raise NotImplementedError

    def encode(self, rows: Dataset, text_columns: list[str]) -> Dataset:
        """The rows as the model reads them, with `labels`."""
        raise NotImplementedError

    def attacks(self, test: Dataset, text_columns: list[str]) -> list[TriggeredSamples]:
        """The triggered samples."""
        raise NotImplementedError

    def measure(self, trainer: Trainer, test: Dataset, attacks: list[TriggeredSamples]) -> dict[str, Any]:
        """`accuracy` and more of the trainer's model on encoded rows, and `triggers`: each attack's success."""
        raise NotImplementedError

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Its `metrics`, for a Trainer that evaluates while it trains."""
        raise NotImplementedError

    def preprocess_logits(self, logits: Any, labels: Any) -> Any:
        """What of the logits these are made of."""
        return logits

    def no_better_than_guessing(self, measured: dict[str, Any]) -> bool:
        """Whether the model does not seem to be for these data."""
        return False
