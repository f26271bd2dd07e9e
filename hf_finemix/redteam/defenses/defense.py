"""What all defences share: an edit of the suspect's weights, then the same fine-tuning with the same rule for ρ."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...config import FineMixingConfig
from ...mix.in_memory import MixingRecord
from ...trainer import FineMixingTrainer

__all__ = ["Defence", "DefenceTrainer"]


@dataclass
class Defence:
    """
    A defence by its edit of the weights; this one leaves them as they are (fine-tuning alone).

    Attributes:
        name (`str`): As in [`DEFENCES`].
        purify (`bool`): Whether E-PUR comes first.
        ratio (`float` or `"auto"`): What of the suspect is kept, in [0, 1]; `"auto"` where clean accuracy chooses it.
        tunes (`bool`): Whether the model is fine-tuned after the edit.
    """

    name: str
    purify: bool = False
    ratio: Any = 1.0
    tunes: bool = True
    mixes: ClassVar[bool] = False  # by itself; of the others only E-PUR is the Trainer's

    def edit(self, model: nn.Module, ratio: float, trainer: "DefenceTrainer") -> None:
        """Change the weights in place, before they are fine-tuned."""

    def config(self, config: FineMixingConfig) -> FineMixingConfig:
        """The settings of its mix, among those that all defences share."""
        own = {"strategy": "random", "module_ratios": None}
        return replace(config, reserve_ratio=self.ratio, purify_embeddings=self.purify, **own)


class DefenceTrainer(FineMixingTrainer):
    """
    [`FineMixingTrainer`] with the edit of any [`Defence`]: same data, steps, search for ρ and early stopping.

    Args:
        defence ([`Defence`], keyword only): Its edit takes the place of mixing.
        mixing_config ([`FineMixingConfig`], keyword only): Base, limits, seeds; the defence sets the rest.
        second_model (`str`, *optional*, keyword only): Another fine-tuned model of the task, for weight averaging.
    """

    def __init__(
        self, *args, defence: Defence, mixing_config: FineMixingConfig, second_model: str | None = None, **kwargs
    ):
        self.defence, self.second_model = defence, second_model
        super().__init__(*args, mixing_config=defence.config(mixing_config), **kwargs)

    def mix_weights(self, model: nn.Module, config: FineMixingConfig) -> MixingRecord:
        """Purify where the defence does, then edit."""
        ratio = config.reserve_ratio
        record = super().mix_weights(model, config if self.defence.mixes else replace(config, reserve_ratio=1.0))
        self.defence.edit(model, ratio, self)
        record.reserve_ratio = ratio
        return record
