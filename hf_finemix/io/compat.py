"""What is private in other libraries and needed here all the same, each with the reason."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["conversions_on_loading", "forget_attention", "initialize_anew", "renaming_on_loading"]


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
