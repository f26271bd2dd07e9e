"""WAG: average the suspect with another model that was fine-tuned for the same task."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...errors import FineMixingError
from ...hub.fetch import fetch_model
from ...io.loading import load_classifier
from .defense import Defense, DefenseTrainer


@dataclass
class WeightAveraging(Defense):
    """Weight averaging (WAG): (w_B + w_other)/2, heads included. It needs no base."""

    pretty_name: ClassVar[str] = "WAG"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2402.19334"

    @torch.no_grad()
    def edit(self, model: nn.Module, ratio: float, trainer: DefenseTrainer) -> None:
        if not trainer.second_model:
            raise FineMixingError("the defense 'wag' needs a second fine-tuned model of the task: give second_model.")
        other = dict(load_classifier(fetch_model(trainer.second_model, role="second model")).named_parameters())
        for name, parameter in model.named_parameters():
            if name not in other or other[name].shape != parameter.shape:
                raise FineMixingError(f"the second model has no {name} of the suspect's shape: give one of its kind.")
            parameter.lerp_(other[name].to(parameter), 0.5)
