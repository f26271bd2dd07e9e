"""Which tensor of the suspect goes with which tensor of the base, by a named rule for every one of them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from .checkpoint import TensorInfo
from .dtypes import MIXABLE
from .errors import AlignmentError

if TYPE_CHECKING:  # aligning names takes no torch
    import torch
    from torch import nn

__all__ = ["Alignment", "Match", "NamedTensors", "align", "canonical_name", "named_tensors"]
__all__ += ["plain_names", "without_adapter"]

MIXED = "mixed"
MIXED_CONVERTED = "mixed: merged or split on loading"
MIXED_COMMON_ROWS = "mixed: common rows of a grown vocabulary, new rows kept"
KEPT_HEAD = "kept: not in the base (head)"
REINITIALISED_HEAD = "reinitialised: not in the base (head)"
KEPT_BUFFER = "kept: buffer"


@dataclass(frozen=True)
class Match:
    """
    What becomes of one tensor of the suspect.

    Attributes:
        rule (`str`): One of the rules named in this module.
        base_name (`str`, *optional*): Where it is mixed, its counterpart's canonical name: its own, or that of a
            weight tied to it.
        rows (`int`): How many leading rows are mixed: all, but for a grown vocabulary.
    """

    rule: str
    base_name: str | None = None
    rows: int = 0


@dataclass(frozen=True)
class Alignment:
    """Every tensor of the suspect by canonical name."""

    matches: dict[str, Match]

    def mixed(self) -> dict[str, Match]:
        """Those that take weights from the base."""
        return {name: match for name, match in self.matches.items() if match.base_name is not None}

    def heads(self) -> list[str]:
        """Those without a counterpart in the base: the classifier, sometimes the pooler."""
        return [name for name, match in self.matches.items() if match.rule in (KEPT_HEAD, REINITIALISED_HEAD)]


@dataclass
class NamedTensors:
    """
    A model in memory by canonical names, each storage once.

    Attributes:
        tensors (`dict[str, torch.Tensor]`): Parameters and persistent buffers.
        module_names (`dict[str, str]`): Canonical name → the name that the module itself uses.
        buffers (`set[str]`): Which of them are buffers.
        embedding (`str`, *optional*): The input embedding's name.
        aliases (`dict[str, list[str]]`): Other canonical names of tied tensors, which a checkpoint may use.
    """

    tensors: "dict[str, torch.Tensor]" = field(default_factory=dict)
    module_names: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    embedding: str | None = None
    aliases: dict[str, list[str]] = field(default_factory=dict)


def canonical_name(name: str, prefix: str) -> str:
    """The name without the model's `base_model_prefix + "."`, where it has one."""
    return name.removeprefix(prefix + ".") if prefix else name


def without_adapter(model: "nn.Module") -> "nn.Module":
    """The model that peft has put a LoRA on, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def plain_names(model: "nn.Module") -> dict[str, str]:
    """
    The module's own name of each parameter and persistent buffer → the name it has where no LoRA is.

    What only the LoRA has is left out, and of a head that is trained beside it the trained copy counts.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    saved = model.state_dict(keep_vars=True)
    names += [name for name, _ in model.named_buffers() if name in saved]  # not those computed anew on load
    if not any(hasattr(module, "base_layer") or hasattr(module, "original_module") for module in model.modules()):
        return {name: name for name in names}
    kept = [name for name in names if not re.search(r"\.(lora_\w+|original_module)(\.|$)", name)]
    return {name: re.sub(r"\.(base_layer|modules_to_save\.[^.]+)\.", ".", name) for name in kept}


def named_tensors(model: "nn.Module") -> NamedTensors:
    """
    Name the parameters and persistent buffers of a model canonically, as they would be without a LoRA on it.

    Tied weights are listed once, by the name of the input embedding where it is one of them.
    """
    model = without_adapter(model)
    prefix = getattr(model, "base_model_prefix", "")
    embedding, plain = _input_embedding_name(model), plain_names(model)
    names_of: dict[int, list[str]] = {}
    tensor_of: dict[int, torch.Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if name in plain:
            names_of.setdefault(id(tensor), []).append(name)
            tensor_of[id(tensor)] = tensor
    parameters = set(tensor_of)
    for name, tensor in model.named_buffers():
        if name in plain:
            names_of.setdefault(id(tensor), []).append(name)
            tensor_of[id(tensor)] = tensor

    result = NamedTensors()
    for key, names in names_of.items():
        names.sort(key=lambda name: name != embedding)
        canonical = canonical_name(plain[names[0]], prefix)
        if canonical in result.tensors:
            raise AlignmentError(f"two tensors of the suspect are called {canonical}: this layout is not supported.")
        result.tensors[canonical] = tensor_of[key]
        result.module_names[canonical] = names[0]
        result.aliases[canonical] = [canonical_name(plain[name], prefix) for name in names[1:]]
        if key not in parameters:
            result.buffers.add(canonical)
        if names[0] == embedding:
            result.embedding = canonical
    return result


def align(
    suspect: Mapping[str, TensorInfo],
    base: Mapping[str, TensorInfo],
    *,
    converted: Collection[str] = (),
    buffers: set[str] = frozenset(),
    embedding: str | None = None,
    aliases: Mapping[str, list[str]] | None = None,
    head: str = "keep",
) -> Alignment:
    """
    Find the counterpart in the base of every tensor of the suspect.

    Args:
        suspect (`Mapping[str, TensorInfo]`): The suspect's tensors by canonical name.
        base (`Mapping[str, TensorInfo]`): The base's tensors by canonical name.
        converted (`Collection[str]`, *optional*): Which of the base's are merged or split on loading.
        buffers (`set[str]`, *optional*): Tensors of the suspect that are no parameters; they stay as they are.
        embedding (`str`, *optional*): The suspect's input embedding, to recognise a grown vocabulary.
        aliases (`Mapping[str, list[str]]`, *optional*): Other names of tied tensors.
        head (`str`, *optional*, defaults to `"keep"`): `"keep"` or `"reinit"` for what the base does not have.

    Returns:
        [`Alignment`]: A rule for every tensor.

    Raises:
        [`AlignmentError`]: A shape or a kind of number that differs, or fewer than half of the suspect's scalar
            parameters found in the base. The message names at most ten tensors and the likely cause.
    """

    def counterpart(name: str) -> str | None:
        return next((n for n in [name, *(aliases or {}).get(name, [])] if n in base), None)

    grown = None
    if embedding is not None and counterpart(embedding) is not None:
        shapes = base[counterpart(embedding)].shape, suspect[embedding].shape
        grown = (shapes[0][0], shapes[1][0]) if all(shapes) else None

    matches: dict[str, Match] = {}
    refused: list[str] = []
    for name, info in suspect.items():
        base_name = counterpart(name)
        if name in buffers:
            matches[name] = Match(KEPT_BUFFER)
        elif base_name is None:
            matches[name] = Match(KEPT_HEAD if head == "keep" else REINITIALISED_HEAD)
        elif not {info.dtype, base[base_name].dtype} <= MIXABLE:
            refused.append(f"{name}: {info.dtype} and {base[base_name].dtype} cannot be mixed")
        elif info.shape == base[base_name].shape:
            rule = MIXED_CONVERTED if base_name in converted else MIXED
            matches[name] = Match(rule, base_name, info.shape[0] if info.shape else 1)
        elif _is_grown(info.shape, base[base_name].shape, grown):
            matches[name] = Match(MIXED_COMMON_ROWS, base_name, base[base_name].shape[0])
        else:
            refused.append(f"{name}: {list(info.shape)} in the suspect, {list(base[base_name].shape)} in the base")
    if refused:
        listed = "; ".join(refused[:10]) + ("; …" if len(refused) > 10 else "")
        raise AlignmentError(
            f"the base does not fit the suspect, {len(refused)} of {len(suspect)} tensors differ ({listed}): "
            "probably the wrong base, give the model that the suspect was fine-tuned from."
        )
    _check_coverage(suspect, matches)
    return Alignment(matches)


def _check_coverage(suspect: Mapping[str, TensorInfo], matches: Mapping[str, Match]) -> None:
    parameters = {name: prod(info.shape) for name, info in suspect.items() if matches[name].rule != KEPT_BUFFER}
    missing = [name for name in parameters if matches[name].base_name is None]
    found = sum(parameters.values()) - sum(parameters[name] for name in missing)
    if 2 * found < sum(parameters.values()) or not found:
        listed = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        raise AlignmentError(
            f"the base has only {found:,} of the suspect's {sum(parameters.values()):,} parameters, {len(missing)} "
            f"tensors are missing ({listed}): probably another architecture, give the model it was fine-tuned from."
        )


def _is_grown(suspect: tuple[int, ...], base: tuple[int, ...], grown: tuple[int, int] | None) -> bool:
    """Whether a tensor has a row (or an entry) per token, and the suspect's vocabulary has tokens added."""
    return (
        grown is not None
        and grown[1] > grown[0]
        and len(suspect) == len(base) > 0
        and (base[0], suspect[0]) == grown
        and suspect[1:] == base[1:]
    )


def _input_embedding_name(model: "nn.Module") -> str | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    embedding = getattr(embedding, "base_layer", embedding)  # within a LoRA
    return next((f"{name}.weight" for name, module in model.named_modules() if module is embedding), None)
