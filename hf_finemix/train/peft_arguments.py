"""LoRA in a training of one's own: TRL's flags for it, and peft's configuration of them."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError, told_as

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass
class PeftArguments:
    """
    Whether to train all weights or a LoRA, and which; each field says itself what it is. The names are those of TRL.
    `all-linear` is all linear layers but the head; rsLoRA is arXiv:2312.03732, DoRA arXiv:2402.09353.
    """

    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA in place of all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "The LoRA counts alpha/r times."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the LoRA's input, in [0, 1)."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers that get a LoRA, or one pattern; by default all-linear."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale the LoRA by alpha/sqrt(r)."})
    use_dora: bool = field(default=False, metadata={"help": "Train the magnitudes apart (DoRA)."})

    def lora_settings(self) -> dict[str, Any] | None:
        """For a report: what was set of these; `None` where all weights are trained."""
        return {name: getattr(self, name) for name in PeftArguments.__dataclass_fields__} if self.use_peft else None

    def with_lora(self, model: "PreTrainedModel", task: str) -> "PeftModel":
        """
        A model, changed in place, with a fresh LoRA and with nothing else but its head to train; `task` is peft's name
        for what it does: `"SEQ_CLS"`, `"CAUSAL_LM"`, ….
        """
        from peft import LoraConfig, get_peft_model

        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise FineMixingError(
                f"lora_r is {self.lora_r}, lora_alpha {self.lora_alpha}, lora_dropout {self.lora_dropout}: give a "
                "rank of 1 or more, an alpha above 0 and a dropout in [0, 1)."
            )
        targets: list[str] | str = self.lora_target_modules or ["all-linear"]
        if len(targets) == 1 and not re.fullmatch(r"[\w.]+", targets[0]):
            targets = targets[0]  # what is no name, such as all-linear or a pattern, stands by itself
        same = {name: getattr(self, name) for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")}
        config = LoraConfig(task_type=task, r=self.lora_r, target_modules=targets, **same)
        with (
            told_as(f"lora_target_modules {self.lora_target_modules}", kinds=ValueError),
            # peft 0.21 looks for a method that transformers 5.23 does not have
            told_as(f"peft cannot put a LoRA on a {type(model).__name__}", "leave it", AttributeError),
        ):
            return get_peft_model(model, config)
