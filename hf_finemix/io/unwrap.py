"""The model of transformers behind what peft, torch and a Trainer put around it."""

from typing import TYPE_CHECKING

from .compat import COMPILED

if TYPE_CHECKING:
    from torch import nn


def without_adapter(model: "nn.Module") -> "nn.Module":
    """The model that peft has put a LoRA on, torch has compiled or spread over processes, or the model itself."""
    while [name for name, _ in model.named_children()] in (["module"], [COMPILED]):
        if any(True for _ in model.parameters(recurse=False)):
            break
        (model,) = model.children()
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
