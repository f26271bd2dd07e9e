"""Two checkpoints on disk side by side: what becomes of every tensor of the suspect, from headers alone."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ..config import FineMixingConfig
from ..errors import AlignmentError, FineMixingError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.dtypes import MIXABLE, is_finite, rounded, to_float64, words
from .architectures import DiskLayout, disk_layout, ties_of_base
from .drift import TensorDrift, check_related
from .rules import TIED, align, listed, why_missing

__all__ = ["DiskPair", "TensorMix", "check_for_disk"]

logger = logging.getLogger(__name__)

SAMPLE_SLICES, SAMPLE_ELEMENTS = 8, 8192  # of each matrix, to see whether the two are related
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class TensorMix:
    """
    What becomes of one tensor of the suspect.

    Attributes:
        name (`str`): Canonical name, which the mask goes by.
        source (`str`): Name on disk, in the suspect and in the mix.
        info (`TensorInfo`): Shape and dtype, in the suspect and in the mix.
        rule (`str`): By which rule.
        base_source (`str`, *optional*): Name on disk of its counterpart in the base, where it is mixed.
        base_dtype (`str`, *optional*): Dtype of the counterpart.
        mixed_elements (`int`): How many leading elements are mixed: all, but where the base's vocabulary is smaller.
        ratio (`float`): Its reserve ratio.
        purified (`tuple[int, ...]`): Rows that are the base's, in rising order.
    """

    name: str
    source: str
    info: TensorInfo
    rule: str
    base_source: str | None = None
    base_dtype: str | None = None
    mixed_elements: int = 0
    ratio: float = 1.0
    purified: tuple[int, ...] = ()

    @property
    def row(self) -> int:
        """Elements of a row, at least 1."""
        return max(1, prod(self.info.shape[1:]))


@dataclass
class DiskPair:
    """
    A suspect and its base by their headers.

    Attributes:
        tensors (`list[TensorMix]`): Every tensor of the mix, in the suspect's order.
        tied (`dict[str, str]`): Names on disk of tensors that must equal another one (by its name on disk) to be tied
            to it, and are then not written.
        layout ([`DiskLayout`]): The names of both.
        vocabulary (`tuple[int, int]`): Rows of the input embeddings of suspect and base; 0 where they are not mixed.
    """

    tensors: list[TensorMix]
    layout: DiskLayout
    tied: dict[str, str] = field(default_factory=dict)
    vocabulary: tuple[int, int] = (0, 0)

    @classmethod
    def from_headers(
        cls,
        suspect: Mapping[str, TensorInfo],
        base: Mapping[str, TensorInfo],
        architecture: str,
        model_config: dict[str, Any],
        config: FineMixingConfig,
        base_config: Any = None,
    ) -> "DiskPair":
        """
        Align two checkpoints.

        Args:
            suspect, base (`Mapping[str, TensorInfo]`): The tensors by name on disk.
            architecture (`str`), model_config (`dict`): Class and content of the suspect's config.json.
            config ([`FineMixingConfig`]): With a number for ρ.
            base_config (*optional*): Content of the base's config.json, which tells what of the base is tied.

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
        infos = {name: suspect[source] for name, source in layout.suspect.items()}
        base_infos = {name: base[source] for name, source in layout.base.items()}
        tied = {
            layout.suspect[other]: layout.suspect[first]
            for first, others in layout.aliases.items()
            for other in others
            if other in layout.suspect and first in layout.suspect
        }
        alignment = align(
            infos,
            base_infos,
            buffers=layout.buffers,
            embedding=layout.embedding if layout.embedding in infos else None,
            aliases=layout.aliases,
            base_ties=ties_of_base(base_config, base_infos, infos),
        )
        order = {source: i for i, source in enumerate(suspect)}
        tensors = []
        for name in sorted(infos, key=lambda name: order[layout.suspect[name]]):
            match, info, source = alignment.matches[name], infos[name], layout.suspect[name]
            if match.base_name is None:
                tensor = TensorMix(name, source, info, match.rule)
            else:
                elements = match.rows * prod(info.shape[1:])
                counterpart = layout.base[match.base_name]
                ratio = config.ratio_for(name, config.reserve_ratio)
                tensor = TensorMix(
                    name, source, info, match.rule, counterpart, base[counterpart].dtype, elements, ratio
                )
            tensors.append(tensor)
        embedding = alignment.mixed().get(layout.embedding)
        vocabulary = (0, 0)
        if embedding is not None:
            vocabulary = infos[layout.embedding].shape[0], base_infos[embedding.base_name].shape[0]
        return cls(tensors, layout, tied, vocabulary)

    def mixed(self) -> list[TensorMix]:
        """Those that take weights from the base."""
        return [tensor for tensor in self.tensors if tensor.base_dtype is not None]

    def ignored_base_tensors(self) -> list[str]:
        """Tensors of the base, by name on disk, that nothing goes with."""
        return sorted(set(self.layout.base.values()) - {tensor.base_source for tensor in self.tensors})

    def check(self, suspect: Checkpoint, base: Checkpoint) -> dict[str, TensorDrift]:
        """
        Compare what the headers do not tell, and drop the tensors that are tied to others.

        Returns:
            `dict[str, TensorDrift]`: How far each weight matrix is from the base's, by a sample of it.

        Raises:
            [`AlignmentError`]: The weights have nothing to do with each other, told by a sample of every matrix.
        """
        same = {alias for alias, first in self.tied.items() if _same_values(suspect, alias, first)}
        self.tensors = [tensor for tensor in self.tensors if tensor.source not in same]
        drift = {t.name: _sampled_drift(t, suspect, base) for t in self.mixed() if len(t.info.shape) > 1}
        check_related(drift, drift, [tensor.name for tensor in self.tensors if tensor.rule.endswith(TIED)])
        return drift

    def mark_purified(self, ids: Collection[int]) -> None:
        """Take these rows of the embedding from the base."""
        if ids:
            self.tensors = [
                replace(t, purified=tuple(sorted(ids)), rule=f"purified and {t.rule}")
                if t.name == self.layout.embedding and t.base_dtype
                else t
                for t in self.tensors
            ]


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
    s, b = (
        _read_words(side, name, side.tensors[name].dtype, start, stop)
        for side, name in ((suspect, tensor.source), (base, tensor.base_source))
    )
    return s, rounded(b, tensor.base_dtype, tensor.info.dtype)


def _read_words(side: Checkpoint, name: str, dtype: str, start: int, stop: int) -> np.ndarray:
    size = side.tensors[name].nbytes // max(1, side.tensors[name].elements)
    raw = np.empty((stop - start) * size, dtype=np.uint8)
    side.read_into(name, memoryview(raw), start * size)
    return words(raw, dtype)


def _sampled_drift(tensor: TensorMix, suspect: Checkpoint, base: Checkpoint) -> TensorDrift:
    """Of slices at even distances, or of the whole where that is not more."""
    total, step = TensorDrift(), max(SAMPLE_ELEMENTS, tensor.mixed_elements // SAMPLE_SLICES)
    for start in range(0, tensor.mixed_elements, step):
        stop = min(start + SAMPLE_ELEMENTS, tensor.mixed_elements)
        pair = read_pair(tensor, suspect, base, start, stop)
        if all(is_finite(side, tensor.info.dtype) for side in pair):  # what is not is told when it is mixed
            s, b = (to_float64(side, tensor.info.dtype) for side in pair)
            delta = s - b
            total.add(TensorDrift(float(delta.dot(delta)), float(s.dot(s)), float(b.dot(b)), float(s.dot(b))))
    return total


def _same_values(side: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors of a checkpoint hold the same numbers, as transformers asks before it ties them."""
    infos = [side.tensors[name], side.tensors[other]]
    if infos[0].shape != infos[1].shape or not {info.dtype for info in infos} <= MIXABLE:
        return False
    for start in range(0, infos[0].elements, CHUNK_ELEMENTS):
        stop = min(start + CHUNK_ELEMENTS, infos[0].elements)
        values = [
            to_float64(_read_words(side, n, info.dtype, start, stop), info.dtype)
            for n, info in zip((name, other), infos, strict=True)
        ]
        if not np.array_equal(*values):
            return False
    return True
