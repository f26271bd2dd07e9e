"""Mixing in pieces, on all cores: what `mix` writes and `verify` compares. It takes a few MB for any model."""

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..align.pair_on_disk import CHUNK_ON_DISK
from ..align.pairing import KEPT_BUFFER, TensorMix
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint
from ..io.dtypes import ITEMSIZE, MIXABLE, average, is_finite, rounded, words
from .mask import keep_mask
from .mask_file import MaskFile

# Scalars a worker takes at a time: enough to be worth taking, few enough that all cores end together.
PIECE_ELEMENTS = 1 << 22

Piece = tuple[TensorMix, int, int]  # elements from … to …


@dataclass
class Parents:
    """What a mix is made of, with `masks` where a score chose; what of it is not finite is named in `bad`."""

    suspect: Checkpoint
    base: Checkpoint
    config: FineMixingConfig
    masks: MaskFile | None = None
    bad: set[str] = field(default_factory=set)


class Workspace:
    """What one worker mixes in, chunk after chunk, without asking for memory again."""

    def __init__(self, parents: Parents):
        self._parents = parents
        self._suspect, self._base = (np.empty(8 * CHUNK_ON_DISK, dtype=np.uint8) for _ in range(2))

    def mixed_chunks(self, piece: Piece) -> Iterator[tuple[int, np.ndarray, int]]:
        """
        Mix a piece, which starts at a multiple of 8.

        Yields:
            `(first element, the bytes of the mix, how many elements are the suspect's own)`; the bytes are good until
            the next chunk.
        """
        tensor, start, stop = piece
        size = ITEMSIZE[tensor.info.dtype]
        for first in range(start, stop, CHUNK_ON_DISK):
            last = min(first + CHUNK_ON_DISK, stop)
            raw = self._suspect[: (last - first) * size]
            self._parents.suspect.read_into(tensor.source, memoryview(raw), first * size)
            kept = last - first
            if tensor.info.dtype in MIXABLE and tensor.rule != KEPT_BUFFER:
                numbers = words(raw, tensor.info.dtype)
                if not is_finite(numbers, tensor.info.dtype):
                    self._parents.bad.add(f"{tensor.name} of the suspect")
                common = min(last, tensor.mixed_elements) - first
                if common > 0:
                    kept += self._mix(tensor, numbers[:common], first) - common
            yield first, raw, kept

    def _mix(self, tensor: TensorMix, s: np.ndarray, first: int) -> int:
        """Mix into `s`; how many of its elements stay the suspect's."""
        (source,), base, config = tensor.base_sources, self._parents.base, self._parents.config
        dtype = base.tensors[source].dtype
        raw = self._base[: len(s) * ITEMSIZE[dtype]]
        base.read_into(source, memoryview(raw), first * ITEMSIZE[dtype])
        original = words(raw, dtype)
        b = rounded(original, dtype, tensor.info.dtype)
        if not is_finite(original, dtype):
            self._parents.bad.add(f"{source} of the base")
        elif not is_finite(b, tensor.info.dtype):
            self._parents.bad.add(f"{source} of the base, which overflows in {tensor.info.dtype}")
        # Whole rows go back to the base after E-PUR: their places in this chunk.
        row = tensor.row
        top, end = (bisect_left(tensor.purified, r) for r in (first // row, -(-(first + len(s)) // row)))
        reset = [slice(max(0, i * row - first), (i + 1) * row - first) for i in tensor.purified[top:end]]
        if config.strategy == "average" and 0 < tensor.ratio < 1:
            s[:] = average(s, b, tensor.info.dtype, tensor.ratio)
            for place in reset:
                s[place] = b[place]
            return 0
        if self._parents.masks is not None:
            keep = self._parents.masks.keep(tensor.name, first, first + len(s))
        else:
            keep = keep_mask(tensor.name, first, first + len(s), ratio=tensor.ratio, seed=config.mixing_seed)
        for place in reset:
            keep[place] = False
        # b ^ ((s ^ b)·m): m·s + (1-m)·b without touching a bit of either, and faster than numpy.where.
        np.bitwise_xor(s, b, out=s)
        np.multiply(s, keep, out=s)
        np.bitwise_xor(s, b, out=s)
        return int(np.count_nonzero(keep))


def pieces(tensors: Collection[TensorMix]) -> list[Piece]:
    """Cut tensors into pieces of work."""
    return [
        (tensor, start, min(start + PIECE_ELEMENTS, tensor.info.elements))
        for tensor in tensors
        for start in range(0, tensor.info.elements, PIECE_ELEMENTS)
    ]


def run_pieces(
    parents: Parents, work: Collection[Piece], do: Callable[[Piece, Workspace], None], workers: int, what: str
) -> None:
    """Call `do(piece, workspace)` for all pieces, in their order, on several threads; the first error ends it."""
    queue, stop, lock = iter(work), threading.Event(), threading.Lock()
    total = sum(ITEMSIZE[tensor.info.dtype] * (last - first) for tensor, first, last in work)
    bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, mininterval=0.5)

    def worker() -> None:
        workspace = Workspace(parents)
        while not stop.is_set():
            with lock:
                piece = next(queue, None)
            if piece is None:
                return
            do(piece, workspace)
            with lock:
                bar.update(ITEMSIZE[piece[0].info.dtype] * (piece[2] - piece[1]))

    with bar, ThreadPoolExecutor(workers) as executor:
        try:
            futures = [executor.submit(worker) for _ in range(workers)]
            wait(futures, return_when="FIRST_EXCEPTION")
            stop.set()
            for future in futures:
                future.result()
        finally:
            stop.set()  # after Ctrl-C too


def check_workers(number: int | None) -> int:
    """How many threads to use; by default one a core, at most 8."""
    if number is not None:
        if not 1 <= number <= 256:
            raise FineMixingError(f"num_workers is {number}: give 1 to 256.")
        return number
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)
