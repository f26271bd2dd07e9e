"""What all defenses share: an edit of the suspect's weights, then the same fine-tuning with the same rule for ρ."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from ...config import FineMixingConfig
from ...mix.in_memory import MixingRecord
from ...trainer import FineMixingTrainer


@dataclass
class Defense:
    """A defense by its edit of the weights; this one leaves them as they are (fine-tuning alone)."""

    pretty_name: ClassVar[str] = "fine-tuning"
    paper: ClassVar[str | None] = None  # where it was published
    purify: bool = False  # whether E-PUR comes first
    ratio: Any = 1.0  # what of the suspect is kept, in [0, 1]; "auto" where clean accuracy chooses it
    tunes: ClassVar[bool] = True  # whether the model is fine-tuned after the edit
    mixes: ClassVar[bool] = False  # by itself; of the others only E-PUR is the Trainer's

    def edit(self, model: nn.Module, ratio: float, trainer: "DefenseTrainer") -> None:
        """Change the weights in place, before they are fine-tuned."""

    def config(self, config: FineMixingConfig) -> FineMixingConfig:
        """The settings of its mix, among those that all defenses share."""
        own = {"reserve_ratio": self.ratio, "purify_embeddings": self.purify}
        return replace(config, **own, strategy="random", module_ratios=None)


@dataclass
class NoDefense(Defense):
    """The suspect as it is."""

    pretty_name: ClassVar[str] = "none"
    tunes: ClassVar[bool] = False


class DefenseTrainer(FineMixingTrainer):
    """
    [`FineMixingTrainer`] with the edit of any [`Defense`]: same data, steps, search for ρ and early stopping.

    Args:
        defense ([`Defense`], keyword only): Its edit takes the place of mixing.
        mixing_config ([`FineMixingConfig`], keyword only): Base, limits, seeds; the defense sets the rest.
        second_model (`str` or `None`, keyword only): Another fine-tuned model of the task, for weight averaging.
    """

    def __init__(self, *args, defense: Defense, mixing_config: FineMixingConfig, second_model: str | None, **kwargs):
        self.defense, self.second_model = defense, second_model
        super().__init__(*args, mixing_config=defense.config(mixing_config), **kwargs)

    def mix_weights(self, model: nn.Module, config: FineMixingConfig) -> MixingRecord:
        ratio = config.reserve_ratio
        record = super().mix_weights(model, config if self.defense.mixes else replace(config, reserve_ratio=1.0))
        self.defense.edit(model, ratio, self)
        record.reserve_ratio = ratio
        return record
