"""Which tensor of the suspect goes with which tensor of the base, by a named rule for every one of them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ..errors import AlignmentError
from ..io.checkpoint import TensorInfo
from ..io.dtypes import MIXABLE
from ..io.unwrap import without_adapter

if TYPE_CHECKING:  # aligning names takes no torch
    import torch
    from torch import nn

__all__ = ["Alignment", "Match", "NamedTensors", "align", "body_within", "canonical_name", "named_tensors"]
__all__ += ["listed", "plain_names", "why_missing", "without_adapter"]

MIXED = "mixed"
MIXED_CONVERTED = "mixed: merged or split on loading"
MIXED_COMMON_ROWS = "mixed: common rows of a grown vocabulary, new rows kept"
MIXED_CUT_ROWS = "mixed: common rows of a cut vocabulary, the base's further rows ignored"
TIED = " (with the weight that the base ties to it)"  # after one of the above
KEPT_HEAD = "kept: not in the base (head)"
REINITIALIZED_HEAD = "reinitialized: not in the base (head)"
KEPT_BUFFER = "kept: buffer"

# Names that quantized weights have beside or in place of `weight`: bitsandbytes, GPTQ, AWQ, fp8.
_PACKED = re.compile(r"\.(qweight|qzeros|scales|SCB|absmax|weight_scale(_inv)?|weight\.(absmax|quant_\S+))$")


@dataclass(frozen=True)
class Match:
    """
    What becomes of one tensor of the suspect.

    Attributes:
        rule (`str`): One of the rules named in this module.
        base_name (`str`, *optional*): Where it is mixed, its counterpart's canonical name: its own, or that of a
            weight tied to it, in the suspect or in the base.
        rows (`int`): How many leading rows are mixed: all, but where the base has a smaller vocabulary.
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

    def untied(self) -> list[str]:
        """Those that the suspect has apart, and the base ties to another weight."""
        return [name for name, match in self.matches.items() if match.rule.endswith(TIED)]

    def heads(self) -> list[str]:
        """Those without a counterpart in the base: the classifier, sometimes the pooler."""
        return [name for name, match in self.matches.items() if match.rule in (KEPT_HEAD, REINITIALIZED_HEAD)]


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
    Name the parameters and persistent buffers of a model canonically: as without a LoRA on it, and without a module of
    the user's own around it.

    Tied weights are listed once, by the name of the input embedding where it is one of them.
    """
    model, (wrapper, body) = without_adapter(model), body_within(model)
    prefix = getattr(body, "base_model_prefix", "")
    plain, outer = plain_names(model), _not_compiled(wrapper)
    embedding = _input_embedding_name(model, body, plain)

    def canonical_of(name: str) -> str:
        name = plain[name]
        return canonical_name(name.removeprefix(outer), prefix) if name.startswith(outer) else name

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
        canonical = canonical_of(names[0])
        if canonical in result.tensors:
            raise AlignmentError(f"two tensors of the suspect are called {canonical}: this layout is not supported.")
        result.tensors[canonical] = tensor_of[key]
        result.module_names[canonical] = names[0]
        result.aliases[canonical] = [canonical_of(name) for name in names[1:]]
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
    base_ties: Mapping[str, str] | None = None,
    head: str = "keep",
) -> Alignment:
    """
    Find the counterpart in the base of every tensor of the suspect.

    Args:
        suspect (`Mapping[str, TensorInfo]`): The suspect's tensors by canonical name.
        base (`Mapping[str, TensorInfo]`): The base's tensors by canonical name.
        converted (`Collection[str]`, *optional*): Which of the base's are merged or split on loading.
        buffers (`set[str]`, *optional*): Tensors of the suspect that are no parameters; they stay as they are.
        embedding (`str`, *optional*): The suspect's input embedding, to recognize a grown vocabulary.
        aliases (`Mapping[str, list[str]]`, *optional*): Other names of tied tensors.
        base_ties (`Mapping[str, str]`, *optional*): Names that the base has no tensor for because its class ties them
            to another one, and the name of that: the counterpart of what the suspect has untied.
        head (`str`, *optional*, defaults to `"keep"`): `"keep"` or `"reinit"` for what the base does not have.

    Returns:
        [`Alignment`]: A rule for every tensor.

    Raises:
        [`AlignmentError`]: A shape or a kind of number that differs, or fewer than half of the suspect's scalar
            parameters found in the base. The message names at most ten tensors and the likely cause.
    """
    aliases, ties = aliases or {}, base_ties or {}

    def counterpart(name: str) -> str | None:
        names = [name, *aliases.get(name, [])]
        return next((n for n in [*names, *(ties[n] for n in names if n in ties)] if n in base), None)

    vocabulary = None
    if embedding is not None and counterpart(embedding) is not None:
        shapes = suspect[embedding].shape, base[counterpart(embedding)].shape
        vocabulary = (shapes[0][0], shapes[1][0]) if all(shapes) else None

    matches: dict[str, Match] = {}
    no_numbers: list[str] = []
    refused: list[str] = []
    for name, info in suspect.items():
        base_name = counterpart(name)
        if name in buffers:
            matches[name] = Match(KEPT_BUFFER)
            continue
        if base_name is None:
            matches[name] = Match(KEPT_HEAD if head == "keep" else REINITIALIZED_HEAD)
            continue
        other = base[base_name]
        tied = TIED if base_name not in (name, *aliases.get(name, [])) else ""
        if not {info.dtype, other.dtype} <= MIXABLE:
            no_numbers.append(f"{name}: {info.dtype} and {other.dtype} cannot be mixed")
        elif info.shape == other.shape:
            rule = MIXED_CONVERTED if base_name in converted else MIXED
            matches[name] = Match(rule + tied, base_name, info.shape[0] if info.shape else 1)
        elif _has_row_per_token(info.shape, other.shape, vocabulary):
            rule = MIXED_COMMON_ROWS if info.shape[0] > other.shape[0] else MIXED_CUT_ROWS
            matches[name] = Match(rule + tied, base_name, min(info.shape[0], other.shape[0]))
        else:
            refused.append(f"{name}: {list(info.shape)} in the suspect, {list(other.shape)} in the base")
    if no_numbers:
        raise AlignmentError(
            f"{len(no_numbers)} of {len(suspect)} tensors are quantized or integers ({listed(no_numbers, '; ')}): "
            "give both models in float32, float16 or bfloat16."
        )
    if refused:
        why = "probably the wrong base, give the model that the suspect was fine-tuned from."
        if not any(re.search(r"\.\d+\.", line) for line in refused):  # in no layer
            why = "the suspect was resized since, or the base is another size of its: give the base of its sizes."
        raise AlignmentError(
            f"the base does not fit the suspect, {len(refused)} of {len(suspect)} tensors differ "
            f"({listed(refused, '; ')}): {why}"
        )
    _check_coverage(suspect, base, matches)
    return Alignment(matches)


def _check_coverage(suspect: Mapping[str, TensorInfo], base: Collection[str], matches: Mapping[str, Match]) -> None:
    parameters = {name: prod(info.shape) for name, info in suspect.items() if matches[name].rule != KEPT_BUFFER}
    if not any(parameters.values()):
        raise AlignmentError("the suspect has no weights that its class has a place for: get the model again.")
    missing = [name for name in parameters if matches[name].base_name is None]
    found = sum(parameters.values()) - sum(parameters[name] for name in missing)
    kinds = {re.sub(r"\d+", "#", name) for name in base if re.search(r"\d", name)}
    if layers := [name for name in missing if re.sub(r"\d+", "#", name) in kinds]:
        raise AlignmentError(
            f"the base has no {listed(layers)}, but others of their kind: it has fewer layers, or is an incomplete "
            "copy; give all of the model that the suspect was fine-tuned from."
        )
    if 2 * found < sum(parameters.values()) or not found:
        raise AlignmentError(
            f"the base has only {found:,} of the suspect's {sum(parameters.values()):,} parameters, {len(missing)} "
            f"tensors are missing ({listed(missing)}): {why_missing(missing, base) or _another_architecture(base)}"
        )


def _another_architecture(base: Collection[str]) -> str:
    called = f"the base's are called otherwise ({listed(sorted(base)[:2])}, …)" if base else "the base has no weights"
    return f"{called}, probably another architecture, give the model it was fine-tuned from."


def why_missing(missing: Collection[str], base: Collection[str]) -> str | None:
    """Why names of the suspect are not among the base's, and what to do; `None` where the names do not tell."""
    if within := _common_prefix(missing, base):
        prefixes = " and ".join(map(repr, within))
        return f"the base's names are there behind {prefixes}: give the model within by itself, one at a time."
    if within := _common_prefix(base, missing):
        return f"the base has them behind {within[0]!r}: save the model within by itself, and give that."
    if packed := next((name for name in (*missing, *base) if _PACKED.search(name)), None):
        return f"{packed} and others are quantized: give both models in float32, float16 or bfloat16."
    return None


def _common_prefix(names: Collection[str], others: Collection[str]) -> list[str]:
    """What stands before the others' names in most of the names: one prefix, or one of each copy of the model."""
    others, found = set(others), Counter()
    for name in names:
        parts = name.split(".")
        tails = (".".join(parts[i:]) for i in range(1, len(parts)))
        if tail := next((tail for tail in tails if tail in others), None):
            found[name.removesuffix(tail)] += 1
    prefixes = [prefix for prefix, count in found.most_common(5) if 2 * count >= found.most_common(1)[0][1]]
    return prefixes if 2 * sum(found.values()) > len(names) else []


def listed(names: Collection[str], separator: str = ", ") -> str:
    """Ten of them at most, for a message."""
    names = list(names)
    return separator.join(names[:10]) + (f"{separator}…" if len(names) > 10 else "")


def _has_row_per_token(suspect: tuple[int, ...], base: tuple[int, ...], vocabulary: tuple[int, int] | None) -> bool:
    """Whether a tensor differs in its rows (or entries) alone, of which one side has as many as tokens."""
    return (
        vocabulary is not None
        and len(suspect) == len(base) > 0
        and (suspect[0] == vocabulary[0] or base[0] == vocabulary[1])
        and suspect[1:] == base[1:]
    )


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
