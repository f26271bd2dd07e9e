"""Which tensor of the suspect goes with which tensor of the base, by a named rule for every one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn

from .checkpoint import TensorInfo
from .errors import AlignmentError

__all__ = ["Alignment", "Match", "NamedTensors", "align", "canonical_name", "checkpoint_renaming", "named_tensors"]

MIXED = "mixed"
MIXED_COMMON_ROWS = "mixed: common rows of a grown vocabulary, new rows kept"
KEPT_HEAD = "kept: not in the base (head)"
REINITIALISED_HEAD = "reinitialised: not in the base (head)"
KEPT_BUFFER = "kept: buffer"

# Not integers, and not the 8-bit floats of quantised models, whose values mean nothing without their scales.
MIXABLE_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Match:
    """
    What becomes of one tensor of the suspect.

    Attributes:
        rule (`str`): One of the rules named in this module.
        base_name (`str`, *optional*): Its counterpart's name on disk, where it is mixed.
        rows (`int`): How many leading rows are mixed: all, but for a grown vocabulary.
    """

    rule: str
    base_name: str | None = None
    rows: int = 0


@dataclass(frozen=True)
class Alignment:
    """Every tensor of the suspect by canonical name, and the tensors of the base that nothing goes with."""

    matches: dict[str, Match]
    ignored_base_tensors: list[str]

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

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    module_names: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    embedding: str | None = None
    aliases: dict[str, list[str]] = field(default_factory=dict)


def canonical_name(name: str, prefix: str) -> str:
    """The name without the model's `base_model_prefix + "."`, where it has one."""
    return name.removeprefix(prefix + ".") if prefix else name


def checkpoint_renaming(model: nn.Module) -> Callable[[str], str]:
    """
    The function that turns a name on disk into a canonical name: transformers' own renamings for this model (old
    checkpoints say `LayerNorm.gamma`), then without the prefix.

    The function raises an [`AlignmentError`] for tensors that transformers merges or splits when it loads them.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not hasattr(model, "config"):
        return lambda name: canonical_name(name, prefix)
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]

    def rename(name: str) -> str:
        renamed, converted = rename_source_key(name, renamings, converters)
        if converted is not None:
            raise AlignmentError(
                f"{name} of the base is merged or split when {type(model).__name__} is loaded: not supported yet."
            )
        return canonical_name(renamed, prefix)

    return rename


def named_tensors(model: nn.Module) -> NamedTensors:
    """
    Name the parameters and persistent buffers of a model canonically.

    Tied weights are listed once, by the name of the input embedding where it is one of them.
    """
    prefix = getattr(model, "base_model_prefix", "")
    embedding = _input_embedding_name(model)
    names_of: dict[int, list[str]] = {}
    tensor_of: dict[int, torch.Tensor] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(tensor), []).append(name)
        tensor_of[id(tensor)] = tensor
    parameters = set(tensor_of)
    saved = model.state_dict(keep_vars=True)
    for name, tensor in model.named_buffers():
        if name in saved:  # not the buffers that are computed anew on load
            names_of.setdefault(id(tensor), []).append(name)
            tensor_of[id(tensor)] = tensor

    result = NamedTensors()
    for key, names in names_of.items():
        names.sort(key=lambda name: name != embedding)
        canonical = canonical_name(names[0], prefix)
        if canonical in result.tensors:
            raise AlignmentError(f"two tensors of the suspect are called {canonical}: this layout is not supported.")
        result.tensors[canonical] = tensor_of[key]
        result.module_names[canonical] = names[0]
        result.aliases[canonical] = [canonical_name(name, prefix) for name in names[1:]]
        if key not in parameters:
            result.buffers.add(canonical)
        if names[0] == embedding:
            result.embedding = canonical
    return result


def align(
    suspect: Mapping[str, TensorInfo],
    base: Mapping[str, TensorInfo],
    *,
    rename: Callable[[str], str] = lambda name: name,
    buffers: set[str] = frozenset(),
    embedding: str | None = None,
    aliases: Mapping[str, list[str]] | None = None,
    head: str = "keep",
) -> Alignment:
    """
    Find the counterpart in the base of every tensor of the suspect.

    Args:
        suspect (`Mapping[str, TensorInfo]`): The suspect's tensors by canonical name.
        base (`Mapping[str, TensorInfo]`): The base's tensors by name on disk.
        rename (`Callable`, *optional*): Name on disk → canonical name, for the base.
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
    on_disk: dict[str, str] = {}
    for name in base:
        canonical = rename(name)
        if canonical in on_disk:
            raise AlignmentError(f"the base has {on_disk[canonical]} and {name}, both of them {canonical}.")
        on_disk[canonical] = name

    def counterpart(name: str) -> str | None:
        names = [name, *(aliases or {}).get(name, [])]
        return next((on_disk[n] for n in names if n in on_disk), None)

    grown = None
    if embedding is not None and counterpart(embedding) is not None:
        grown = (base[counterpart(embedding)].shape[0], suspect[embedding].shape[0])

    matches: dict[str, Match] = {}
    refused: list[str] = []
    for name, info in suspect.items():
        base_name = counterpart(name)
        if name in buffers:
            matches[name] = Match(KEPT_BUFFER)
        elif base_name is None:
            matches[name] = Match(KEPT_HEAD if head == "keep" else REINITIALISED_HEAD)
        elif not {info.dtype, base[base_name].dtype} <= MIXABLE_DTYPES:
            refused.append(f"{name}: {info.dtype} and {base[base_name].dtype} cannot be mixed")
        elif info.shape == base[base_name].shape:
            matches[name] = Match(MIXED, base_name, info.shape[0] if info.shape else 1)
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
    used = {match.base_name for match in matches.values()}
    return Alignment(matches, sorted(name for name in base if name not in used))


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


def _input_embedding_name(model: nn.Module) -> str | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return next((f"{name}.weight" for name, module in model.named_modules() if module is embedding), None)
