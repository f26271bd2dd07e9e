"""The canonical names of a model in memory: as without a prefix, a LoRA, a wrapper, or what torch compiled."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import AlignmentError
from ..io.unwrap import without_adapter

if TYPE_CHECKING:  # aligning names takes no torch
    import torch
    from torch import nn


@dataclass
class NamedTensors:
    """A model in memory by canonical names, each storage once."""

    tensors: "dict[str, torch.Tensor]" = field(default_factory=dict)  # parameters and persistent buffers
    module_names: dict[str, str] = field(default_factory=dict)  # canonical name → the name that the module itself uses
    buffers: set[str] = field(default_factory=set)  # which of them are buffers
    embedding: str | None = None  # the input embedding's name
    aliases: dict[str, list[str]] = field(default_factory=dict)  # other canonical names of tied tensors


def canonical_name(name: str, prefix: str) -> str:
    """The name without the model's `base_model_prefix + "."`, where it has one."""
    return name.removeprefix(prefix + ".") if prefix else name


def body_within(model: "nn.Module") -> tuple[str, "nn.Module"]:
    """
    The model of transformers within a module of the user's own, and its name there with a dot behind it.

    A model of transformers, and a module that holds none or several of them, is its own body, named "".
    """
    model, found = without_adapter(model), {}
    for name, module in model.named_modules():
        if _is_body(module) and not any(name.startswith(outer) for outer in found):
            found[name + "." if name else ""] = module
    return next(iter(found.items())) if len(found) == 1 else ("", model)


def _is_body(module: "nn.Module") -> bool:
    """Whether it is a model of transformers, or the user's head on what their class calls its body."""
    # By type, since a compiled module passes all else on to what it holds.
    lineage = [cls for cls in type(module).__mro__ if cls.__module__.startswith("transformers.")]
    if not any(cls.__name__ == "PreTrainedModel" for cls in lineage):
        return False
    prefix = module.base_model_prefix
    return not lineage[0].__name__.endswith("PreTrainedModel") or bool(prefix and hasattr(module, prefix))


def plain_names(model: "nn.Module") -> dict[str, str]:
    """
    The module's own name of each parameter and persistent buffer → the name it has where no LoRA is.

    What only the LoRA has is left out, and of a head that is trained beside it the trained copy counts. Parts that
    torch has compiled go by the names they had before.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    saved = model.state_dict(keep_vars=True)
    names += [name for name, _ in model.named_buffers() if name in saved]  # not those computed anew on load
    plain = {name: _not_compiled(name) for name in names}
    if not any(hasattr(module, "base_layer") or hasattr(module, "original_module") for module in model.modules()):
        return plain
    kept = [name for name in names if not re.search(r"\.(lora_\w+|original_module)(\.|$)", name)]
    return {name: re.sub(r"\.(base_layer|modules_to_save\.[^.]+)\.", ".", plain[name]) for name in kept}


def named_tensors(model: "nn.Module") -> NamedTensors:
    """
    Name a model's tensors canonically: as without a LoRA on it, and without a module of the user's own around it.

    Tied weights are listed once, by the name of the input embedding where it is one of them.
    """
    model, (wrapper, body) = without_adapter(model), body_within(model)
    prefix = getattr(body, "base_model_prefix", "")
    plain, outer = plain_names(model), _not_compiled(wrapper)
    embedding = _input_embedding_name(model, body, plain)

    def canonical_of(name: str) -> str:
        name = plain[name]
        return canonical_name(name.removeprefix(outer), prefix) if name.startswith(outer) else name

    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = parameters | dict(model.named_buffers())
    names_of: dict[int, list[str]] = {}
    for name in filter(plain.__contains__, tensors):
        names_of.setdefault(id(tensors[name]), []).append(name)
    result = NamedTensors()
    for names in names_of.values():
        names.sort(key=lambda name: name != embedding)
        canonical = canonical_of(names[0])
        if canonical in result.tensors:
            raise AlignmentError(f"two tensors of the suspect are called {canonical}: this layout is not supported.")
        result.tensors[canonical] = tensors[names[0]]
        result.module_names[canonical] = names[0]
        result.aliases[canonical] = [canonical_of(name) for name in names[1:]]
        if parameters.keys().isdisjoint(names):
            result.buffers.add(canonical)
        if names[0] == embedding:
            result.embedding = canonical
    return result


def _input_embedding_name(model: "nn.Module", body: "nn.Module", plain: Mapping[str, str]) -> str | None:
    """Of the module's own names; of those that a LoRA adds, the name of what counts."""
    try:
        embedding = body.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    found = next((f"{name}.weight" for name, module in model.named_modules() if module is embedding), None)
    return next((name for name in plain if found and plain[name] == _not_compiled(found)), None)


def _not_compiled(name: str) -> str:
    return re.sub(r"(^|(?<=\.))_orig_mod\.", "", name)
