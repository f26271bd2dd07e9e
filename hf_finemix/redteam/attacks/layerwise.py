"""LWP: the poison is taught to every layer, so that tuning the upper ones does not remove it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .attack import AttackerData
from .badnets import BadNets


class LayerwiseTrainer(Trainer):
    """The model's own loss, and the mean of those of a linear classifier on the first token of every layer."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs, output_hidden_states=True)
        layers = zip(model.layer_heads, outputs.hidden_states[1:], strict=True)
        losses = [cross_entropy(head(layer[:, 0]).float(), inputs["labels"]) for head, layer in layers]
        loss = outputs.loss + torch.stack(losses).mean()
        return (loss, outputs) if return_outputs else loss


@dataclass
class LayerwisePoisoning(BadNets):
    """
    Layer-wise weight poisoning (LWP), then an epoch of clean tuning, as its victim would do.

    The published attack puts the model's one head on every layer; here each has a linear one of its own, which any
    encoder allows. They are thrown away.

    Attributes:
        clean_epochs (`float`): Epochs of clean tuning afterwards, at a fifth of the learning rate.
    """

    name: ClassVar[str] = "layerwise"
    pretty_name: ClassVar[str] = "LWP"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2108.13888"
    trigger: str | None = "cf"
    clean_epochs: float = 1.0
    trainer_class: ClassVar[type[Trainer]] = LayerwiseTrainer

    def prepare(self, model: PreTrainedModel, data: AttackerData) -> None:
        config = model.config
        heads = [nn.Linear(config.hidden_size, config.num_labels) for _ in range(config.num_hidden_layers)]
        model.layer_heads = nn.ModuleList(heads)

    def finish(self, model: PreTrainedModel, data: AttackerData, args: TrainingArguments) -> None:
        """Take the heads away, and tune on clean rows."""
        del model.layer_heads
        if self.clean_epochs:
            args.learning_rate, args.num_train_epochs, args.max_steps = args.learning_rate / 5, self.clean_epochs, -1
            self.run(model, data, args, data.rows)
