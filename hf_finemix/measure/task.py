"""What clean and evaluate ask of a task."""

from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from ..errors import FineMixingError
from ..io.folder import LocalModel
from ..io.loading import max_tokens
from .arguments import DataArguments, MeasureArguments, TestDataArguments
from .attack_success import TriggeredSamples, by_length
from .clean_data import CleanData, load_clean_data, load_test_data
from .reader import Reader
from .tables import read_triggered
from .triggered_rows import rows_read_whole, with_trigger
from .triggers import Trigger


class Task:
    """
    One task, for one model and its tokenizer. The arguments are [`MeasureArguments`] and [`TestDataArguments`] in one.

    Attributes:
        pipeline_tag (`str`): The Hub's name for it.
        lora_task (`str`): peft's name for it.
        label2id (`dict[str, int]`, *optional*): The classes by name; `None` where answers are texts.
        target_name (`str`, *optional*): What the attacker wants, in words; `None` where no attack is measured.
        wanted (`dict`): The same for the report.
        collator (`Any`): For the Trainer; `None` for its own.
        metrics (`dict[str, bool]`): What [`compute_metrics`] gives, and whether more of it is better.
    """

    pipeline_tag: ClassVar[str]
    lora_task: ClassVar[str]
    label2id: dict[str, int] | None = None
    target_name: str | None = None
    wanted: dict[str, Any]
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
        return load_clean_data(arguments, self.label2id)

    def test_data(self, arguments: TestDataArguments) -> tuple[Dataset, list[str]]:
        """The test rows alone, and their text columns."""
        return load_test_data(arguments, self.label2id)

    def encode(self, rows: Dataset, text_columns: list[str]) -> Dataset:
        """The rows as the model reads them, with `labels`."""
        return self.reader_for(None).encode(rows, text_columns)

    def attacks(self, test: Dataset, text_columns: list[str]) -> list[TriggeredSamples]:
        """Each trigger in the test rows whose right answer is not the attacker's, and the file of triggered ones."""
        arguments, made = self.arguments, []
        if self.target_name is None:
            return []
        if arguments.num_repeats < 1:
            raise FineMixingError(f"num_repeats is {arguments.num_repeats}: give 1 or more.")
        clean = self.attackable(test)
        for text in arguments.triggers or []:
            trigger, reader = Trigger(text, arguments.trigger_position), self.reader_for(text)
            # Fixed places are the same in every repeat.
            seeds = range(arguments.num_repeats if trigger.position == "random" else 1)
            made.append((text, trigger.position, reader, *with_trigger(clean, trigger, text_columns, reader, seeds)))
        if file := arguments.triggered_file:
            reader = self.reader_for(None)
            rows, unreadable = rows_read_whole(self.read_triggered(file, text_columns), text_columns, reader, file)
            made.append((Path(file).name, "in the file", reader, [rows], unreadable))
        attacks = []
        for name, position, reader, repeats, unreadable in made:
            encoded = [by_length(reader.encode(repeat, text_columns)) for repeat in repeats]
            attacks.append(TriggeredSamples(name, position, self.wanted, encoded, unreadable, self.rate))
        return attacks

    def reader_for(self, trigger: str | None) -> Reader:
        """How the model reads texts into which the trigger is put."""
        raise NotImplementedError

    def attackable(self, test: Dataset) -> Dataset:
        """The rows whose right answer is not the attacker's."""
        raise NotImplementedError

    def read_triggered(self, file: str, text_columns: list[str]) -> Dataset:
        """The rows of a file of texts that hold their trigger."""
        return read_triggered(file, text_columns)

    def rate(self, trainer: Trainer, repeat: Dataset) -> float:
        """The share of triggered rows in which the attacker succeeds."""
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
