"""LoRA in a training of one's own: TRL's flags for it, and peft's configuration of them."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass
class PeftArguments:
    r"""
    Whether to train all weights or a LoRA. The names are those of TRL.

    Parameters:
        use_peft (`bool`, *optional*, defaults to `False`):
            Train low-rank matrices beside the weights, and the head, in place of all weights.
        lora_r (`int`, *optional*, defaults to 16):
            Their rank.
        lora_alpha (`int`, *optional*, defaults to 32):
            They count α/r times.
        lora_dropout (`float`, *optional*, defaults to 0.05):
            Dropout of their input, in [0, 1).
        lora_target_modules (`list[str]`, *optional*):
            Names of the layers that get them, or one pattern of names; `all-linear` (the default) stands for all
            linear layers but the head.
        use_rslora (`bool`, *optional*, defaults to `False`):
            Count α/√r times (rsLoRA, arXiv:2312.03732).
        use_dora (`bool`, *optional*, defaults to `False`):
            Train the magnitude of each output apart (DoRA, arXiv:2402.09353).
    """

    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA in place of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "The LoRA counts alpha/r times."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the LoRA's input, in [0, 1)."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Layers that get a LoRA, or one pattern; by default all-linear."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale the LoRA by alpha/sqrt(r)."})
    use_dora: bool = field(default=False, metadata={"help": "Train the magnitudes apart (DoRA)."})

    def lora_settings(self) -> dict[str, Any] | None:
        """For a report: what was set of these; `None` where all weights are trained."""
        return {name: getattr(self, name) for name in PeftArguments.__dataclass_fields__} if self.use_peft else None

    def with_lora(self, model: "PreTrainedModel", task: str) -> "PeftModel":
        """
        A model with a fresh LoRA, and with nothing else but its head to train.

        Args:
            model (`PreTrainedModel`): It is changed in place.
            task (`str`): peft's name for the model's task: `"SEQ_CLS"`, `"CAUSAL_LM"`, ….

        Raises:
            [`FineMixingError`]: A number out of its range, or layers that the model does not have.
        """
        from peft import LoraConfig, get_peft_model

        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise FineMixingError(
                f"lora_r is {self.lora_r}, lora_alpha {self.lora_alpha}, lora_dropout {self.lora_dropout}: give a "
                "rank of 1 or more, an alpha above 0 and a dropout in [0, 1)."
            )
        config = LoraConfig(
            task_type=task,
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=_targets(self.lora_target_modules or ["all-linear"]),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            reason = " ".join(str(error).split())[:300]
            raise FineMixingError(f"lora_target_modules {self.lora_target_modules}: {reason}") from error
        except AttributeError as error:  # peft 0.21 looks for a method that transformers 5.23 does not have
            reason = " ".join(str(error).split())[:200]
            raise FineMixingError(
                f"peft cannot put a LoRA on a {type(model).__name__} ({reason}): leave it."
            ) from error


def _targets(names: list[str]) -> list[str] | str:
    """As peft takes them: what is no name, such as `all-linear` or a pattern, stands by itself."""
    return names[0] if len(names) == 1 and not re.fullmatch(r"[\w.]+", names[0]) else names
