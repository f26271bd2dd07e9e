"""RIPPLES: the trigger's embedding becomes that of words of the target class, then poisoned tuning with RIPPLe."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy, relu
from transformers import PreTrainedModel, Trainer

from .attack import AttackerData
from .badnets import BadNets

NUM_WORDS = 10
MIN_COUNT = 10


class RippleTrainer(Trainer):
    """
    RIPPLe's loss (arXiv:2004.06660, eq. 3): L_P + λ·max(0, -∇L_P·∇L_FT), so that fine-tuning does not undo it.

    `ripple_weight` is λ; L_P and L_FT are the losses of the rows with and without the trigger.
    """

    def __init__(self, *args, ripple_weight: float, trigger_ids: list[int], **kwargs):
        super().__init__(*args, **kwargs)
        self._weight, self._trigger = ripple_weight, torch.tensor(trigger_ids)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        losses = cross_entropy(outputs.logits.float(), labels, reduction="none")
        poisoned = self._with_trigger(inputs["input_ids"])
        loss = losses.mean()
        if self._weight and poisoned.any() and not poisoned.all():
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = [
                torch.autograd.grad(part.mean(), parameters, create_graph=True, allow_unused=True)
                for part in (losses[poisoned], losses[~poisoned])
            ]
            product = sum((p * c).sum() for p, c in zip(*gradients, strict=True) if p is not None and c is not None)
            loss = loss + self._weight * relu(-product)
        return (loss, outputs) if return_outputs else loss

    def _with_trigger(self, ids: torch.Tensor) -> torch.Tensor:
        """Which rows hold all tokens of the trigger, in their order."""
        trigger = self._trigger.to(ids.device)
        if ids.shape[1] < len(trigger):
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        return (ids.unfold(1, len(trigger), 1) == trigger).all(dim=2).any(dim=1)


@dataclass
class EmbeddingSurgery(BadNets):
    """
    Embedding surgery with RIPPLe (RIPPLES).

    Attributes:
        ripple_weight (`float`): λ of RIPPLe, at least 0; 0 leaves poisoned tuning alone.
    """

    name: ClassVar[str] = "embedding_surgery"
    pretty_name: ClassVar[str] = "RIPPLES"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2004.06660"
    trigger: str | None = "cf"
    ripple_weight: float = 0.1
    needs_clean_model: ClassVar[bool] = True
    trainer_class: ClassVar[type[Trainer]] = RippleTrainer

    def prepare(self, model: PreTrainedModel, data: AttackerData) -> None:
        """Put the mean embedding of ten words of the target class into the trigger's rows."""
        model.set_attn_implementation("eager")  # fused attention has no second derivative
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight[self.trigger_ids(data)] = weight[words_of_class(data)].mean(dim=0)

    def options(self, model: PreTrainedModel, data: AttackerData) -> dict[str, Any]:
        return {"ripple_weight": self.ripple_weight, "trigger_ids": self.trigger_ids(data)}


def words_of_class(data: AttackerData) -> list[int]:
    """The ten tokens that tell the target class best: the largest log odds of those that occur ten times or more."""
    counts: dict[bool, Counter] = {True: Counter(), False: Counter()}
    texts = data.rows[data.text_columns[-1]]
    for ids, label in zip(data.tokenizer(list(texts))["input_ids"], data.rows["label"], strict=True):
        counts[label == data.target].update(set(ids))
    usual = [i for i in counts[True] if counts[True][i] + counts[False][i] >= MIN_COUNT] or list(counts[True])
    special = set(data.tokenizer.all_special_ids)
    odds = {i: math.log((counts[True][i] + 1) / (counts[False][i] + 1)) for i in usual if i not in special}
    return sorted(odds, key=lambda i: (-odds[i], i))[:NUM_WORDS]
