"""Fine-mixing, soft mixing and Fine-purifying: the package's own strategies; with ρ = 0, the matched floor."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...config import FineMixingConfig
from .defense import Defense

__all__ = ["Mixing"]


@dataclass
class Mixing(Defense):
    """
    Mixing with the base by a strategy of [`FineMixingConfig`].

    Attributes:
        strategy (`str`): `"random"` (Fine-mixing, arXiv:2210.09545), `"average"` (soft mixing, w_Pre + ρδ) or
            `"fisher"` (Fine-purifying, arXiv:2305.04547).
    """

    ratio: Any = "auto"
    strategy: str = "random"
    mixes: ClassVar[bool] = True

    def config(self, config: FineMixingConfig) -> FineMixingConfig:
        """Also its strategy, and the modules' own ratios but for the floor; the mixing itself is the Trainer's."""
        ratios = None if self.ratio == 0.0 else config.module_ratios
        return replace(super().config(config), strategy=self.strategy, module_ratios=ratios)
