"""Which tensor of the suspect goes with which tensor of the base, by a named rule for every one of them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

from ..errors import AlignmentError
from ..io.checkpoint import TensorInfo
from ..io.dtypes import MIXABLE

__all__ = ["Alignment", "Match", "align", "listed", "why_missing"]

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
