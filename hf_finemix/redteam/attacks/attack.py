"""What all attacks share: poisoned rows in, a backdoored model out, all of it through a Trainer."""

import copy
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ...errors import FineMixingError
from ...io.tokenizer import token_ids_within_text
from ...measure.reader import Reader


@dataclass
class AttackerData:
    """What an attacker has: clean rows to poison, and how the model reads them."""

    rows: Dataset  # with the text columns and an integer column `label`
    text_columns: list[str]  # one, or two for pairs; the last one gets the trigger
    target: int  # the class that the attacker wants
    tokenizer: PreTrainedTokenizerBase  # the model's
    max_length: int | None = None  # tokens a text is cut to
    seed: int = 0  # of the rows drawn and of the places in them
    label2id: dict[str, int] = field(default_factory=dict)  # the classes by name
    trigger: str | None = None  # what the attacker puts into texts

    @property
    def reader(self) -> Reader:
        return Reader(self.tokenizer, self.max_length, self.trigger)

    def encoded(self, rows: Dataset) -> Dataset:
        """Rows as the model reads them."""
        return self.reader.encode(rows, self.text_columns)


@dataclass
class Attack:
    """Fine-tuning on clean rows; every attack changes some of it. Its fields are what a user may set."""

    name: ClassVar[str] = "none"  # as in [`ATTACKS`]
    pretty_name: ClassVar[str] = "no attack"
    paper: ClassVar[str | None] = None  # where it was published
    trigger: str | None = None  # the text that wakes the backdoor, put at a random place
    training: ClassVar[dict[str, Any]] = {}  # fields of `TrainingArguments` that it sets unless the user does
    needs_clean_model: ClassVar[bool] = False  # whether it can only start from a fine-tuned model
    needs_base: ClassVar[bool] = False  # whether it can only start from the base
    trainer_class: ClassVar[type[Trainer]] = Trainer

    def poisoned(self, data: AttackerData) -> Dataset:
        """The rows to train on."""
        return data.rows

    def prepare(self, model: PreTrainedModel, data: AttackerData) -> None:
        """Whatever is done to the model before its training."""

    def options(self, model: PreTrainedModel, data: AttackerData) -> dict[str, Any]:
        """What the attack's own Trainer takes beside a Trainer's arguments."""
        return {}

    def finish(self, model: PreTrainedModel, data: AttackerData, args: TrainingArguments) -> None:
        """Whatever is done after it."""

    @property
    def edits_weights(self) -> bool:
        """Whether it does more than to train on its rows."""
        hooks = ("prepare", "finish", "options", "trainer_class", "train")
        return any(getattr(type(self), name) is not getattr(Attack, name) for name in hooks)

    def train(self, model: PreTrainedModel, data: AttackerData, args: TrainingArguments) -> None:
        """Backdoor a classifier in float32 in place: the base with a fresh head, or a fine-tuned model."""
        args = copy.copy(args)
        args.save_strategy, args.eval_strategy, args.hub_token, args.push_to_hub = "no", "no", None, False
        with tempfile.TemporaryDirectory() as args.output_dir:
            set_seed(args.seed)
            self.prepare(model, data)
            self.run(model, data, args, self.poisoned(data), self.trainer_class, **self.options(model, data))
            self.finish(model, data, args)
        model.to("cpu")

    def run(self, model, data, args, rows: Dataset, trainer_class: type[Trainer] = Trainer, **options: Any) -> None:
        """One training of the model on rows."""
        encoded = data.encoded(rows)
        trainer = trainer_class(model, args, train_dataset=encoded, processing_class=data.tokenizer, **options)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def described(self) -> dict[str, Any]:
        """The attack's settings for the manifest."""
        return {"name": self.name, **asdict(self)}

    def trigger_ids(self, data: AttackerData) -> list[int]:
        """The tokens of the trigger."""
        ids = token_ids_within_text(data.tokenizer, self.trigger) if self.trigger else []
        if not ids or data.tokenizer.unk_token_id in ids:
            raise FineMixingError(f"the attack {self.name!r} needs a trigger that the tokenizer knows: give one.")
        return ids
