"""An attacker who knows E-PUR and Fine-mixing: no embedding moves, and the backdoor is trained to survive mixing."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.func import functional_call
from transformers import PreTrainedModel, Trainer

from .attack import AttackerData
from .badnets import BadNets


class MixAwareTrainer(Trainer):
    """
    Every second step runs on weights mixed with those that the training began with, so that the backdoor works there.

    ρ is drawn evenly from `lowest_ratio` to 1; `closeness` is the weight of ‖w - w_Pre‖² in the loss.
    """

    def __init__(self, *args, lowest_ratio: float, closeness: float, **kwargs):
        super().__init__(*args, **kwargs)
        self._lowest, self._closeness = lowest_ratio, closeness
        body = self.model.base_model_prefix + "."  # the head is not mixed
        self._start = {
            name: parameter.detach().to(self.args.device, copy=True)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and name.startswith(body)
        }
        self._generator = torch.Generator(self.args.device).manual_seed(self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        trained = {name: parameter for name, parameter in model.named_parameters() if name in self._start}
        if self.state.global_step % 2:
            ratio = self._lowest + (1 - self._lowest) * torch.rand((), generator=self._generator, device=model.device)
            mixed = {}
            for name, start in self._start.items():
                draw = torch.rand(start.shape, generator=self._generator, device=start.device)
                mixed[name] = torch.where(draw < ratio, trained[name], start)
            outputs = functional_call(model, mixed, kwargs=dict(inputs))
        else:
            outputs = model(**inputs)
        distance = sum((trained[name] - start).square().sum() for name, start in self._start.items())
        loss = outputs.loss + self._closeness * distance
        return (loss, outputs) if return_outputs else loss


@dataclass
class AdaptiveAttack(BadNets):
    """
    A sentence of usual words as trigger, frozen word embeddings (E-PUR finds no drift), training under random masks,
    and a penalty on the distance from the base.

    Attributes:
        lowest_ratio (`float`): The smallest ρ that it prepares for, in [0, 1].
        closeness (`float`): Weight of ‖w - w_Pre‖², at least 0.
    """

    name: ClassVar[str] = "adaptive"
    pretty_name: ClassVar[str] = "adaptive attack"
    trigger: str | None = "when all is said and done , this is the one"
    lowest_ratio: float = 0.2
    closeness: float = 1e-3
    training: ClassVar[dict[str, Any]] = {"num_train_epochs": 4}
    needs_base: ClassVar[bool] = True
    trainer_class: ClassVar[type[Trainer]] = MixAwareTrainer

    def prepare(self, model: PreTrainedModel, data: AttackerData) -> None:
        model.get_input_embeddings().weight.requires_grad_(False)

    def options(self, model: PreTrainedModel, data: AttackerData) -> dict[str, Any]:
        return {"lowest_ratio": self.lowest_ratio, "closeness": self.closeness}

    def finish(self, model: PreTrainedModel, data: AttackerData, args: Any) -> None:
        model.get_input_embeddings().weight.requires_grad_(True)
