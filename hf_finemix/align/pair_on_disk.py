"""Two checkpoints on disk side by side: what becomes of every tensor of the suspect, from headers alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import FineMixingConfig
from ..errors import AlignmentError, FineMixingError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.dtypes import ITEMSIZE, MIXABLE, is_finite, rounded, to_float64, words
from .architectures import DiskLayout, disk_layout, ties_of_base
from .drift import TensorDrift, check_related
from .pairing import Pairing, TensorMix
from .rules import align, listed, why_missing

SAMPLE_SLICES, SAMPLE_ELEMENTS = 8, 8192  # of each matrix, to see whether the two are related
# Scalars worked on at a time: few enough for a core's cache, enough that threads seldom wait for each other.
CHUNK_ON_DISK = 1 << 18


def pair_headers(
    suspect: Mapping[str, TensorInfo],
    base: Mapping[str, TensorInfo],
    architecture: str,
    model_config: dict[str, Any],
    config: FineMixingConfig,
    base_config: Any = None,
) -> Pairing:
    """
    Align two checkpoints by their headers, in the order of the suspect's files.

    `architecture` is the suspect's class, `model_config` and `base_config` are the content of both config.json.

    Raises:
        [`AlignmentError`]: As [`align`] does; besides for 8-bit floats and for layouts that transformers merges or
            splits on loading.
    """
    check_for_disk(config)
    layout = disk_layout(suspect, base, architecture, model_config)
    if layout.converted:
        name, sources = next(iter(layout.converted.items()))
        raise AlignmentError(
            f"{len(layout.converted)} tensors of {architecture} are merged or split on loading ({name} from "
            f"{sources[0]}, …), and their mask goes by what is in memory: use clean, or mix_model in Python; "
            "what these made cannot be verified on disk."
        )
    _refuse_quantized(suspect)
    _check_places(suspect, layout, architecture)
    name_of = {source: name for name, source in layout.suspect.items()}
    sources = {name_of[source]: source for source in suspect if source in name_of}
    infos = {name: suspect[source] for name, source in sources.items()}
    base_infos = {name: base[source] for name, source in layout.base.items()}
    pairing = align(
        infos,
        base_infos,
        buffers=layout.buffers,
        embedding=layout.embedding if layout.embedding in infos else None,
        aliases=layout.aliases,
        base_ties=ties_of_base(base_config, base_infos, infos),
        sources=sources,
        base_sources={name: [source] for name, source in layout.base.items()},
    )
    pairing.ignored_suspect_tensors = layout.ignored
    pairing.tied = {
        sources[other]: sources[first]
        for first, others in layout.aliases.items()
        for other in others
        if other in sources and first in sources
    }
    pairing.set_ratios(config, config.reserve_ratio)
    return pairing


def check_pair(pairing: Pairing, suspect: Checkpoint, base: Checkpoint) -> dict[str, TensorDrift]:
    """
    Compare what the headers do not tell, by a sample of each weight matrix, and drop the tensors tied to others.

    Raises:
        [`AlignmentError`]: The weights have nothing to do with each other.
    """
    same = {alias for alias, first in pairing.tied.items() if _same_values(suspect, alias, first)}
    pairing.tensors = [tensor for tensor in pairing.tensors if tensor.source not in same]
    drift = {t.name: _sampled_drift(t, suspect, base) for t in pairing.mixed() if len(t.info.shape) > 1}
    check_related(drift, drift, pairing.untied())
    return drift


def check_for_disk(config: FineMixingConfig) -> None:
    """Raise a [`FineMixingError`] for what only a model in memory can do."""
    if config.reserve_ratio == "auto":
        raise FineMixingError("reserve_ratio is 'auto', which only clean can choose: give a number in [0, 1].")
    if config.strategy == "fisher":
        raise FineMixingError("strategy='fisher' needs gradients on clean text: use clean, on disk 'random'.")
    if config.head == "reinit":
        raise FineMixingError("head='reinit' needs the model in memory (mix_model): on disk, use 'keep'.")


def _check_places(suspect: Mapping[str, TensorInfo], layout: DiskLayout, architecture: str) -> None:
    """The suspect must be of the class that its config.json names: what that has no place for would be left out."""
    left_out = sum(suspect[name].elements for name in layout.ignored)
    if 2 * left_out > sum(info.elements for info in suspect.values()):
        why = why_missing(layout.ignored, {*layout.base, *layout.base.values()})
        raise AlignmentError(
            f"{architecture} has no place for {len(layout.ignored)} of the suspect's {len(suspect)} tensors "
            f"({listed(layout.ignored)}): {why or 'name the class that has, in its config.json (architectures).'}"
        )


def _refuse_quantized(tensors: Mapping[str, TensorInfo]) -> None:
    quantized = [f"{name} ({info.dtype})" for name, info in tensors.items() if info.dtype.startswith("float8")]
    if quantized:
        raise AlignmentError(
            f"{len(quantized)} tensors of the suspect are 8-bit floats, which mean nothing without their scales and "
            f"cannot be mixed ({listed(quantized)}): give the model in float32, float16 or bfloat16."
        )


def read_pair(
    tensor: TensorMix, suspect: Checkpoint, base: Checkpoint, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Elements `start` to `stop` of both sides as words of the suspect's dtype."""
    (source,) = tensor.base_sources
    b = rounded(read_words(base, source, start, stop), base.tensors[source].dtype, tensor.info.dtype)
    return read_words(suspect, tensor.source, start, stop), b


def read_words(side: Checkpoint, name: str, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of a tensor as words of its dtype."""
    size = ITEMSIZE[side.tensors[name].dtype]
    raw = np.empty((stop - start) * size, dtype=np.uint8)
    side.read_into(name, memoryview(raw), start * size)
    return words(raw, side.tensors[name].dtype)


def _sampled_drift(tensor: TensorMix, suspect: Checkpoint, base: Checkpoint) -> TensorDrift:
    """Of slices at even distances, or of the whole where that is not more."""
    total, step = TensorDrift(), max(SAMPLE_ELEMENTS, tensor.mixed_elements // SAMPLE_SLICES)
    for start in range(0, tensor.mixed_elements, step):
        stop = min(start + SAMPLE_ELEMENTS, tensor.mixed_elements)
        pair = read_pair(tensor, suspect, base, start, stop)
        if all(is_finite(side, tensor.info.dtype) for side in pair):  # what is not is told when it is mixed
            total.add(TensorDrift.between(*(to_float64(side, tensor.info.dtype) for side in pair)))
    return total


def _same_values(side: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same numbers, as transformers asks before it ties them."""
    one, two = side.tensors[name], side.tensors[other]
    if one.shape != two.shape or not {one.dtype, two.dtype} <= MIXABLE:
        return False
    ranges = ((start, min(start + CHUNK_ON_DISK, one.elements)) for start in range(0, one.elements, CHUNK_ON_DISK))
    return all(
        np.array_equal(*(to_float64(read_words(side, n, *where), side.tensors[n].dtype) for n in (name, other)))
        for where in ranges
    )
