"""Which tensor of the suspect goes with which tensor of the base, by a named rule for every one of them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping

from ..errors import AlignmentError
from ..io.checkpoint import TensorInfo
from ..io.dtypes import MIXABLE
from .pairing import (
    KEPT_BUFFER,
    KEPT_HEAD,
    MIXED,
    MIXED_COMMON_ROWS,
    MIXED_CONVERTED,
    MIXED_CUT_ROWS,
    REINITIALIZED_HEAD,
    TIED,
    Pairing,
    TensorMix,
)

# Names that quantized weights have beside or in place of `weight`: bitsandbytes, GPTQ, AWQ, fp8.
_PACKED = re.compile(r"\.(qweight|qzeros|scales|SCB|absmax|weight_scale(_inv)?|weight\.(absmax|quant_\S+))$")


def align(
    suspect: Mapping[str, TensorInfo],
    base: Mapping[str, TensorInfo],
    *,
    converted: Collection[str] = (),
    buffers: Collection[str] = (),
    embedding: str | None = None,
    aliases: Mapping[str, list[str]] | None = None,
    base_ties: Mapping[str, str] | None = None,
    head: str = "keep",
    sources: Mapping[str, str] | None = None,
    base_sources: Mapping[str, list[str]] | None = None,
) -> Pairing:
    """
    Find the counterpart in the base of every tensor of the suspect, both by canonical names, in the order given.

    Args:
        converted: Which of the base's are merged or split on loading.
        buffers: Tensors of the suspect that are no parameters; they stay as they are.
        embedding: The suspect's input embedding, to recognize a grown vocabulary.
        aliases: Other names of tied tensors.
        base_ties: What the base's class ties to another tensor → that: the counterpart of what the suspect has untied.
        head: `"keep"` or `"reinit"` for what the base does not have.
        sources, base_sources: What the suspect itself calls its tensors, and the names on disk of the base's.

    Raises:
        [`AlignmentError`]: A shape or a kind of number that differs, or fewer than half of the suspect's scalar
            parameters found in the base. The message names at most ten tensors and the likely cause.
    """
    aliases, ties = aliases or {}, base_ties or {}
    sources, base_sources = sources or {}, base_sources or {name: [name] for name in base}

    def counterpart(name: str) -> str | None:
        names = [name, *aliases.get(name, [])]
        return next((n for n in [*names, *(ties[n] for n in names if n in ties)] if n in base), None)

    vocabulary = None
    if embedding is not None and counterpart(embedding) is not None:
        shapes = suspect[embedding].shape, base[counterpart(embedding)].shape
        vocabulary = (shapes[0][0], shapes[1][0]) if all(shapes) else None

    tensors: list[TensorMix] = []
    no_numbers: list[str] = []
    refused: list[str] = []
    for name, info in suspect.items():
        base_name, rows = counterpart(name), info.shape[0] if info.shape else 1
        if name in buffers or base_name is None:
            rule = KEPT_BUFFER if name in buffers else KEPT_HEAD if head == "keep" else REINITIALIZED_HEAD
            tensors.append(TensorMix(name, info, rule, source=sources.get(name, name)))
            continue
        other = base[base_name]
        if not {info.dtype, other.dtype} <= MIXABLE:
            no_numbers.append(f"{name}: {info.dtype} and {other.dtype} cannot be mixed")
            continue
        if info.shape == other.shape:
            rule = MIXED_CONVERTED if base_name in converted else MIXED
        elif _has_row_per_token(info.shape, other.shape, vocabulary):
            rule = MIXED_COMMON_ROWS if rows > other.shape[0] else MIXED_CUT_ROWS
            rows = min(rows, other.shape[0])
        else:
            refused.append(f"{name}: {list(info.shape)} in the suspect, {list(other.shape)} in the base")
            continue
        rule += TIED if base_name not in (name, *aliases.get(name, [])) else ""
        names = tuple(base_sources[base_name])
        tensors.append(TensorMix(name, info, rule, base_name, rows, sources.get(name, name), names))
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
    pairing = Pairing(tensors, embedding)
    _check_coverage(pairing, base)
    used = {source for tensor in tensors for source in tensor.base_sources}
    pairing.ignored_base_tensors = sorted({name for names in base_sources.values() for name in names} - used)
    pairing.converted_base_tensors = {t.name: list(t.base_sources) for t in tensors if t.base_name in converted}
    if vocabulary and pairing.mixed_embedding():
        pairing.vocabulary = vocabulary
    return pairing


def _check_coverage(pairing: Pairing, base: Collection[str]) -> None:
    parameters = {t.name: t.info.elements for t in pairing.tensors if t.rule != KEPT_BUFFER}
    if not any(parameters.values()):
        raise AlignmentError("the suspect has no weights that its class has a place for: get the model again.")
    missing = [tensor.name for tensor in pairing.heads()]
    found = sum(parameters.values()) - sum(parameters[name] for name in missing)
    kinds = {re.sub(r"\d+", "#", name) for name in base if re.search(r"\d", name)}
    if layers := [name for name in missing if re.sub(r"\d+", "#", name) in kinds]:
        raise AlignmentError(
            f"the base has no {listed(layers)}, but others of their kind: it has fewer layers, or is an incomplete "
            "copy; give all of the model that the suspect was fine-tuned from."
        )
    if 2 * found < sum(parameters.values()) or not found:
        other = (
            f"the base's are called otherwise ({listed(sorted(base)[:2])}, …)" if base else "the base has no weights"
        )
        other += ", probably another architecture, give the model it was fine-tuned from."
        raise AlignmentError(
            f"the base has only {found:,} of the suspect's {sum(parameters.values()):,} parameters, {len(missing)} "
            f"tensors are missing ({listed(missing)}): {why_missing(missing, base) or other}"
        )


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
