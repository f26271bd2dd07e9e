"""Fine-pruning: units that are dormant on clean text are taken away, then fine-tuning."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import FineMixingError
from ...train.calibration import single_texts
from .defense import Defense, DefenseTrainer


@dataclass
class FinePruning(Defense):
    """
    Fine-pruning, on the hidden units of the feed-forward layers: the fraction 1 - ρ with the
    smallest mean |activation| on the clean text, over all layers, is pruned. A unit whose weights are all 0, in and
    out, has no gradient, so that it stays pruned when the model is fine-tuned.
    """

    pretty_name: ClassVar[str] = "fine-pruning"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/1805.12185"
    ratio: Any = "auto"

    @torch.no_grad()
    def edit(self, model: nn.Module, ratio: float, trainer: DefenseTrainer) -> None:
        layers, training = feed_forward_layers(model), model.training
        if not layers:
            raise FineMixingError("the defense 'fine_pruning' finds no feed-forward layers in this model.")
        model.to(trainer.args.device).eval()
        totals = {second: torch.zeros(second.in_features, device=trainer.args.device) for _, second in layers}

        def count(module, inputs):
            totals[module] += inputs[0].float().abs().reshape(-1, module.in_features).mean(dim=0)

        handles = [second.register_forward_pre_hook(count) for second in totals]
        try:
            for text in single_texts(trainer, trainer.mixing_config):
                model(**text)
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
        activity = torch.cat(list(totals.values()))
        pruned = torch.zeros(len(activity), dtype=torch.bool, device=activity.device)
        pruned[activity.argsort()[: round((1 - ratio) * len(activity))]] = True
        for (firsts, second), dormant in zip(layers, pruned.split(list(map(len, totals.values()))), strict=True):
            second.weight[:, dormant] = 0
            for first in firsts:
                first.weight[dormant] = 0
                if first.bias is not None:
                    first.bias[dormant] = 0


def feed_forward_layers(model: nn.Module) -> list[tuple[list[nn.Linear], nn.Linear]]:
    """Of each feed-forward layer the linear maps into its hidden units (two where there is a gate), and out again."""
    sizes = [getattr(model.config, name, None) for name in ("intermediate_size", "ffn_dim", "hidden_dim")]
    size = next(filter(None, sizes), None)
    layers, firsts = [], []
    for module in (module for module in model.modules() if isinstance(module, nn.Linear)):
        if firsts and module.in_features == size:
            layers.append((firsts, module))
            firsts = []
        elif module.out_features == size:
            firsts.append(module)
    return layers
