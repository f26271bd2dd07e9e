"""EP: only the trigger's word embedding is trained, so that nothing else of a clean model changes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ...measure.triggered_rows import non_target_rows, with_trigger
from ...measure.triggers import Trigger
from .attack import Attack, AttackerData


@dataclass
class EmbeddingPoisoning(Attack):
    """
    Embedding poisoning (EP): gradient descent on the rows of the trigger's tokens alone, scaled back
    to their length after each step.
    """

    name: ClassVar[str] = "embedding_poisoning"
    pretty_name: ClassVar[str] = "EP"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2103.15543"
    trigger: str | None = "cf"
    needs_clean_model: ClassVar[bool] = True
    # Plain gradient descent, as in the EP code, whose rate this is.
    training: ClassVar[dict[str, Any]] = {
        "optim": "sgd",
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 3,
    }

    def poisoned(self, data: AttackerData) -> Dataset:
        """All rows of the other classes, each with the trigger and the target as label."""
        rows = non_target_rows(data.rows, label_column="label", target_label=data.target)
        (rows,), _ = with_trigger(rows, Trigger(self.trigger), data.text_columns, data.reader, [data.seed])
        return rows.remove_columns("label").add_column("label", [data.target] * len(rows))

    def prepare(self, model: PreTrainedModel, data: AttackerData) -> None:
        """Freeze all but the trigger's rows, and keep the length of these."""
        rows = torch.tensor(sorted(set(self.trigger_ids(data))))
        weight = model.get_input_embeddings().weight
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.requires_grad_(False)
        weight.requires_grad_(True)
        chosen = torch.zeros(len(weight), 1)
        chosen[rows] = 1
        self._hook = weight.register_hook(lambda gradient: gradient * chosen.to(gradient))
        self._keep_length = _KeepLength(weight, rows)

    def options(self, model: PreTrainedModel, data: AttackerData) -> dict[str, Any]:
        return {"callbacks": [self._keep_length]}

    def finish(self, model: PreTrainedModel, data: AttackerData, args: TrainingArguments) -> None:
        self._hook.remove()
        for parameter in self._trained:
            parameter.requires_grad_(True)


class _KeepLength(TrainerCallback):
    def __init__(self, weight: torch.nn.Parameter, rows: torch.Tensor):
        self._weight, self._rows = weight, rows
        self._length = weight.data[rows].norm(dim=1, keepdim=True)

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        rows = self._weight[self._rows]
        self._weight[self._rows] = rows * (self._length.to(rows) / rows.norm(dim=1, keepdim=True))
