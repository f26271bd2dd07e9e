"""What is private in other libraries and needed here all the same, each with the reason."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, Trainer, TrainingArguments

__all__ = ["COMPILED", "collator_of_columns", "forget_attention", "forget_evaluation", "on_one_gpu", "prepared_inputs"]

# What torch.compile calls the model in the one that it makes of it; torch has no public way back.
COMPILED = "_orig_mod"


def forget_attention(config: "PreTrainedConfig") -> None:
    """transformers: what a configuration chose can name a kernel on the Hub, which is code; unsetting has no way."""
    config._attn_implementation = None


def on_one_gpu(args: "TrainingArguments") -> None:
    """transformers: with more than one, a Trainer in one process always wraps the model in DataParallel."""
    args._n_gpu = min(1, args.n_gpu)


def collator_of_columns(trainer: "Trainer") -> Any:
    """transformers: the data collator without the columns that the model does not take, in a loader of one's own."""
    return trainer._get_collator_with_removed_columns(trainer.data_collator, description="curvature")


def prepared_inputs(trainer: "Trainer", inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers: a batch as the Trainer's own loop hands it to the model, on its device."""
    return trainer._prepare_inputs(inputs)


def forget_evaluation(trainer: "Trainer", model: "nn.Module") -> None:
    """
    accelerate: an evaluation before training marks the bare model as prepared, and prepare() then leaves it bare: in
    several processes each would train alone, without a word. To go with the first accelerate after 1.15 whose
    `prepare_model(evaluation_mode=True)` leaves no such mark.
    """
    if trainer.args.world_size == 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # the latter two wrap a model in order to evaluate it
    if trainer.model_wrapped is model:
        model._is_accelerate_prepared = False  # its other registers are emptied as training begins
