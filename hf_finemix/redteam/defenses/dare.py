"""DARE: drop the differences to the base at random and scale up what is left."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...align.pair_in_memory import compare_with_base
from ...io.checkpoint import Checkpoint
from ...mix.mask import keep_mask
from .defense import Defense, DefenseTrainer


@dataclass
class Dare(Defense):
    """
    Drop and rescale (DARE): w_Pre + m·δ/ρ with m ~ Bernoulli(ρ), so that the mean is the suspect.

    The mask is that of Fine-mixing at the same ρ and seed: the two differ in the rescaling alone.
    """

    pretty_name: ClassVar[str] = "DARE"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2311.03099"
    ratio: Any = "auto"

    @torch.no_grad()
    def edit(self, model: nn.Module, ratio: float, trainer: DefenseTrainer) -> None:
        with Checkpoint(trainer.mixing.base.folder) as base:
            pair = compare_with_base(model, base)
            for tensor in pair.pairing.mixed():
                values = torch.atleast_1d(pair.suspect.tensors[tensor.name].data)[: tensor.rows]
                start = pair.base.read(tensor.base_name, 0, tensor.rows).to(values)
                mask = keep_mask(tensor.name, 0, values.numel(), ratio=ratio, seed=trainer.mixing_config.mixing_seed)
                keep = torch.from_numpy(mask).to(values.device).view(values.shape)
                values.copy_(torch.where(keep, start + (values - start) / max(ratio, 1e-9), start))
