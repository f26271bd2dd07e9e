"""What is private in other libraries and needed here all the same, each with the reason."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments


# What torch.compile calls the model in the one that it makes of it; torch has no public way back.
COMPILED = "_orig_mod"


def forget_attention(config: "PreTrainedConfig") -> None:
    """transformers: what a configuration chose can name a kernel on the Hub, which is code; a setter wants one."""
    config._attn_implementation = None


def conversions_on_loading(model: "PreTrainedModel") -> tuple[list[Any], list[Any]]:
    """
    transformers: what of a checkpoint a model's class renames, and what it merges or splits, while it is loaded. Both
    are told by loading alone; to go once a class can be asked for the names that its checkpoints have.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    transforms = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    return [transform for transform in transforms if not isinstance(transform, WeightConverter)], converters


def renaming_on_loading(
    names: Iterable[str], renamings: list[Any], converters: list[Any], prefix: str, known: Mapping[str, Any]
) -> list[tuple[str, str, str | None]]:
    """
    transformers: each name on disk, in the order of loading, with its name in the model and the pattern by which it is
    merged or split; goes together with [`conversions_on_loading`].
    """
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    names = sorted(names, key=dot_natural_key)
    return [(name, *rename_source_key(name, renamings, converters, prefix, known)) for name in names]


def initialize_anew(model: "nn.Module", module: "nn.Module", parameters: Collection["nn.Parameter"]) -> bool:
    """
    transformers: initialize a module as the model's class does, which alone knows how; in a model that is not of
    transformers by torch's own way. Returns whether there was a way.
    """
    initialize: Callable | None = getattr(model, "_init_weights", None)
    if initialize is not None:
        for parameter in parameters:
            parameter._is_hf_initialized = False  # transformers leaves alone what it has loaded
        initialize(module)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        return False
    return True


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
