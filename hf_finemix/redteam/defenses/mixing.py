"""Fine-mixing, soft mixing and Fine-purifying: the package's own strategies; with ρ = 0, the matched floor."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...config import FineMixingConfig
from .defense import Defense


@dataclass
class FineMixing(Defense):
    """Mixing with the base by a strategy of [`FineMixingConfig`]; by the Trainer, which does so itself."""

    pretty_name: ClassVar[str] = "Fine-mixing"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2210.09545"
    ratio: Any = "auto"
    strategy: ClassVar[str] = "random"
    mixes: ClassVar[bool] = True

    def config(self, config: FineMixingConfig) -> FineMixingConfig:
        """Also its strategy, and the modules' own ratios but for the floor."""
        ratios = None if self.ratio == 0.0 else config.module_ratios
        return replace(super().config(config), strategy=self.strategy, module_ratios=ratios)


@dataclass
class MatchedFloor(FineMixing):
    """Nothing of the suspect but its head: what fine-tuning the base with it gives."""

    pretty_name: ClassVar[str] = "matched floor"
    paper: ClassVar[str | None] = None
    ratio: Any = 0.0


@dataclass
class SoftMixing(FineMixing):
    """The mean w_Pre + ρδ in place of a mask."""

    pretty_name: ClassVar[str] = "soft mixing"
    paper: ClassVar[str | None] = None
    strategy: ClassVar[str] = "average"


@dataclass
class FinePurifying(FineMixing):
    """A mask by what the weights mean to clean text."""

    pretty_name: ClassVar[str] = "Fine-purifying"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2305.04547"
    strategy: ClassVar[str] = "fisher"
