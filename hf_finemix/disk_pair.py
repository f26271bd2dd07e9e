"""Two checkpoints on disk side by side: what becomes of every tensor of the suspect, from headers alone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .alignment import MIXED_COMMON_ROWS, align
from .architectures import DiskLayout, disk_layout
from .checkpoint import Checkpoint, TensorInfo, row_chunks
from .config import FineMixingConfig
from .drift import TensorDrift, check_related
from .dtypes import is_finite, rounded, to_float64, words
from .errors import AlignmentError, FineMixingError
from .purification import TokenDrift, frequency_of_rows, row_drift, rows_to_purify

__all__ = ["DiskPair", "TensorMix"]

KEPT_INTEGERS = "kept: integers, the same in both"
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
        mixed_elements (`int`): How many leading elements are mixed: all, but for a grown vocabulary.
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
        """Elements of a row."""
        return self.info.elements // self.info.shape[0] if self.info.shape and self.info.shape[0] else 1


@dataclass
class DiskPair:
    """
    A suspect and its base by their headers.

    Attributes:
        tensors (`list[TensorMix]`): Every tensor of the mix, in the suspect's order.
        tied (`dict[str, str]`): Names on disk of tensors that must equal another one (by its name on disk) to be tied
            to it, and are then not written.
        integers (`list[TensorMix]`): Those kept under the condition that both sides have the same.
        layout ([`DiskLayout`]): The names of both.
    """

    tensors: list[TensorMix]
    layout: DiskLayout
    tied: dict[str, str] = field(default_factory=dict)
    integers: list[TensorMix] = field(default_factory=list)

    @classmethod
    def from_headers(
        cls,
        suspect: Mapping[str, TensorInfo],
        base: Mapping[str, TensorInfo],
        architecture: str,
        model_config: dict[str, Any],
        config: FineMixingConfig,
    ) -> "DiskPair":
        """
        Align two checkpoints.

        Args:
            suspect, base (`Mapping[str, TensorInfo]`): The tensors by name on disk.
            architecture (`str`), model_config (`dict`): Class and content of the suspect's config.json.
            config ([`FineMixingConfig`]): With a number for ρ.

        Raises:
            [`AlignmentError`]: As [`align`] does; besides for 8-bit floats and for layouts that transformers merges or
                splits on loading.
        """
        if config.reserve_ratio == "auto":
            raise FineMixingError("reserve_ratio is 'auto', which only clean can choose: give a number in [0, 1].")
        if config.head == "reinit":
            raise FineMixingError("head='reinit' needs the model in memory (mix_model): on disk, use 'keep'.")
        layout = disk_layout(suspect, base, architecture, model_config)
        if layout.converted:
            name, sources = next(iter(layout.converted.items()))
            raise AlignmentError(
                f"{len(layout.converted)} tensors of {architecture} are merged or split on loading ({name} from "
                f"{sources[0]}, …), and their mask goes by what is in memory: use clean, or mix_model in Python."
            )
        _refuse_quantised(suspect)
        infos = {name: suspect[source] for name, source in layout.suspect.items()}
        base_infos = {name: base[source] for name, source in layout.base.items()}
        tied = {
            layout.suspect[other]: layout.suspect[first]
            for first, others in layout.aliases.items()
            for other in others
            if other in layout.suspect and first in layout.suspect
        }
        integers = {
            name
            for name, info in infos.items()
            if not info.dtype.startswith(("float", "bfloat")) and base_infos.get(name, info) == info
        }
        alignment = align(
            infos,
            base_infos,
            buffers=layout.buffers | integers,
            embedding=layout.embedding if layout.embedding in infos else None,
            aliases=layout.aliases,
        )
        order = {source: i for i, source in enumerate(suspect)}
        tensors, same = [], []
        for name in sorted(infos, key=lambda name: order[layout.suspect[name]]):
            match, info, source = alignment.matches[name], infos[name], layout.suspect[name]
            if match.base_name is None:
                tensor = TensorMix(name, source, info, match.rule)
                if name in integers - layout.buffers and name in base_infos:
                    tensor = replace(tensor, rule=KEPT_INTEGERS, base_source=layout.base[name])
                    same.append(tensor)
            else:
                elements = info.elements
                if match.rule == MIXED_COMMON_ROWS:
                    elements = match.rows * (info.elements // info.shape[0])
                counterpart = layout.base[match.base_name]
                ratio = config.ratio_for(name, config.reserve_ratio)
                tensor = TensorMix(
                    name, source, info, match.rule, counterpart, base[counterpart].dtype, elements, ratio
                )
            tensors.append(tensor)
        return cls(tensors, layout, tied, same)

    def mixed(self) -> list[TensorMix]:
        """Those that take weights from the base."""
        return [tensor for tensor in self.tensors if tensor.mixed_elements or tensor.base_dtype]

    def ignored_base_tensors(self) -> list[str]:
        """Tensors of the base, by name on disk, that nothing goes with."""
        return sorted(set(self.layout.base.values()) - {tensor.base_source for tensor in self.tensors})

    def check(self, suspect: Checkpoint, base: Checkpoint) -> None:
        """
        Compare what the headers do not tell, and drop the tensors that are tied to others.

        Raises:
            [`AlignmentError`]: Integers that differ, or weights that have nothing to do with each other (told by a
                sample of every matrix).
        """
        for tensor in self.integers:
            if not _same_bytes(suspect, tensor.source, base, tensor.base_source):
                raise AlignmentError(
                    f"{tensor.name} is {tensor.info.dtype} and differs between suspect and base: integers cannot be "
                    "mixed. Give both in float32, float16 or bfloat16."
                )
        same = {
            alias
            for alias, first in self.tied.items()
            if suspect.tensors[alias] == suspect.tensors[first] and _same_bytes(suspect, alias, suspect, first)
        }
        self.tensors = [tensor for tensor in self.tensors if tensor.source not in same]
        drift = {t.name: _sampled_drift(t, suspect, base) for t in self.mixed() if len(t.info.shape) > 1}
        check_related(drift, drift)

    def purify(
        self,
        suspect: Checkpoint,
        base: Checkpoint,
        config: FineMixingConfig,
        frequencies: np.ndarray,
        special_token_ids: Collection[int],
    ) -> tuple[list[dict[str, Any]], list[int]]:
        """
        Find the embeddings to reset (E-PUR) and mark their rows.

        Returns:
            `tuple`: `id`, `delta`, `frequency` and `score` of each, largest score first, and the ids of added tokens.
        """
        place = next((i for i, t in enumerate(self.tensors) if t.name == self.layout.embedding and t.base_dtype), None)
        if place is None:
            return [], []
        tensor = self.tensors[place]
        rows = tensor.mixed_elements // tensor.row
        drifts = []
        for first, last, start in row_chunks((rows, tensor.row), CHUNK_ELEMENTS):
            s, b = _read_pair(tensor, suspect, base, start, start + (last - first) * tensor.row)
            s, b = (to_float64(side, tensor.info.dtype).reshape(-1, tensor.row) for side in (s, b))
            if not np.isfinite(s.sum() + b.sum()):
                raise AlignmentError(f"NaN or infinite weights in {tensor.name}: get another copy of the model.")
            drifts.append(row_drift(s, b))
        drift = TokenDrift.measured(np.concatenate(drifts), frequency_of_rows(frequencies, rows), special_token_ids)
        ids = rows_to_purify(drift.score, config.num_purified_tokens, special_token_ids)
        self.mark_purified(ids)
        return [drift.describe(i) for i in ids], list(range(rows, tensor.info.shape[0]))

    def mark_purified(self, ids: Collection[int]) -> None:
        """Take these rows of the embedding from the base."""
        if ids:
            self.tensors = [
                replace(t, purified=tuple(sorted(ids)), rule=f"purified and {t.rule}")
                if t.name == self.layout.embedding and t.base_dtype
                else t
                for t in self.tensors
            ]


def _refuse_quantised(tensors: Mapping[str, TensorInfo]) -> None:
    quantised = [f"{name} ({info.dtype})" for name, info in tensors.items() if info.dtype.startswith("float8")]
    if quantised:
        listed = ", ".join(quantised[:10]) + (", …" if len(quantised) > 10 else "")
        raise AlignmentError(
            f"{len(quantised)} tensors of the suspect are 8-bit floats, which mean nothing without their scales and "
            f"cannot be mixed ({listed}): give the model in float32, float16 or bfloat16."
        )


def _read_pair(
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
        pair = _read_pair(tensor, suspect, base, start, stop)
        if all(is_finite(side, tensor.info.dtype) for side in pair):  # what is not is told when it is mixed
            s, b = (to_float64(side, tensor.info.dtype) for side in pair)
            delta = s - b
            total.add(TensorDrift(float(delta.dot(delta)), float(s.dot(s)), float(b.dot(b)), float(s.dot(b))))
    return total


def _same_bytes(left: Checkpoint, name: str, right: Checkpoint, other: str) -> bool:
    size = left.tensors[name].nbytes
    for start in range(0, size, CHUNK_ELEMENTS):
        sides = [bytearray(min(CHUNK_ELEMENTS, size - start)) for _ in range(2)]
        left.read_into(name, memoryview(sides[0]), start)
        right.read_into(other, memoryview(sides[1]), start)
        if sides[0] != sides[1]:
            return False
    return True
