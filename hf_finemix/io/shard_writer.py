"""Writing safetensors files into place: all headers first, then any piece of any tensor in any order."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from .checkpoint import INDEX_NAME, WEIGHTS_NAME, TensorInfo
from .dtypes import ITEMSIZE, SAFETENSORS_NAMES
from .output_folder import DISK_FULL
from .thread_files import ThreadFiles

_CODES = {name: code for code, name in SAFETENSORS_NAMES.items()}


def parse_size(size: int | str) -> int:
    """Bytes of a size such as `"500MB"` (decimal, as for `save_pretrained`) or `"2GiB"`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(size), re.IGNORECASE)
    number = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ") if match else 0
    if number < 1:
        raise FineMixingError(f"max_shard_size is {size!r}: give a size such as 5GB or 500MB.")
    return int(number)


class ShardWriter:
    """
    A model's weight files, made in full size at once and filled from several threads.

    Nothing is held in memory: a shard may be as large as it likes. Room on the disk is taken when the files are made.
    A file takes up to `max_shard_size` bytes of tensors, in the order given; a larger tensor has a file of its own.
    `file_of` has the file of each tensor.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], max_shard_size: int):
        self.file_of: dict[str, Path] = {}
        self._begin: dict[str, int] = {}
        self._open_files = ThreadFiles("r+b")
        shards = _cut(tensors, max_shard_size)
        for number, names in enumerate(shards, 1):
            file = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            self._make(folder / file, {name: tensors[name] for name in names})
        if len(shards) > 1:
            weight_map = {name: self.file_of[name].name for name in tensors}
            total = sum(info.nbytes for info in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def write(self, name: str, data: memoryview, offset: int) -> None:
        """Put bytes into a tensor from its byte `offset` on."""
        file = self._open_files.get(self.file_of[name])
        file.seek(self._begin[name] + offset)
        while len(data):
            data = data[file.write(data) :]

    def sync(self, path: Path) -> None:
        """Return when a file is on the disk."""
        os.fsync(self._open_files.get(path).fileno())

    def close(self) -> None:
        """Let go of the files."""
        self._open_files.close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _make(self, path: Path, tensors: Mapping[str, TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, info in tensors.items():
            end = position + info.nbytes
            header[name] = {"dtype": _CODES[info.dtype], "shape": info.shape, "data_offsets": [position, end]}
            self.file_of[name], self._begin[name] = path, position
            position = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        for name in tensors:
            self._begin[name] += 8 + len(text)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.flush()
            try:
                if position:
                    os.posix_fallocate(file.fileno(), 8 + len(text), position)
            except (AttributeError, OSError) as error:  # not on every system, nor on every file system
                if getattr(error, "errno", None) in DISK_FULL:
                    raise
                file.truncate(8 + len(text) + position)


def _cut(tensors: Mapping[str, TensorInfo], max_size: int) -> list[list[str]]:
    """The names in each file, larger kinds of number first: so each lies at a multiple of its own size."""
    shards, size = [[]], 0
    for name, info in tensors.items():
        if shards[-1] and size + info.nbytes > max_size:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    return [sorted(names, key=lambda name: -ITEMSIZE[tensors[name].dtype]) for names in shards]
