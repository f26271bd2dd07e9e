"""A model folder as names, shapes, dtypes and lazily read tensors. Safetensors only, in one file or in shards."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .errors import FineMixingError

__all__ = ["Checkpoint", "TensorInfo", "row_chunks", "sha256_of_file"]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """
    The weights of a local model folder, read tensor by tensor (or in slices of rows) when asked for.

    Use it as a context manager: the files are mapped on first use and let go at the end, so that their pages do not
    count as this process's memory any longer.

    Args:
        folder (`str` or `Path`):
            A folder with `model.safetensors`, or with `model.safetensors.index.json` and the shards it names.

    Attributes:
        tensors (`dict[str, TensorInfo]`): Every tensor by its name on disk.
        files (`list[Path]`): The weight files.

    Raises:
        [`FineMixingError`]: No safetensors in the folder, an index or a file that cannot be read or that names
            something outside the folder, a tensor in two files or missing from its file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._open_files = ExitStack()
        self._handles: dict[Path, safe_open] = {}
        indexed = self._indexed_names()
        self.files = sorted({self.folder / file for file in indexed.values()}) or [self._single_file()]
        self._file_of: dict[str, Path] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            for path in self.files:
                self._add_file(path)
            for name, file in indexed.items():
                if self._file_of.get(name) != self.folder / file:
                    raise FineMixingError(f"{self.folder / INDEX_NAME} says that {name} is in {file}, but it is not.")
        finally:
            self.close()

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """The tensor of this name, or its rows `start` to `stop` along the first dimension, on the CPU."""
        handle = self._handle(self._file_of[name])
        if start is None and stop is None:
            return handle.get_tensor(name)
        if not self.tensors[name].shape:  # a scalar counts as one row
            return handle.get_tensor(name).view(1)
        return handle.get_slice(name)[start:stop]

    def close(self) -> None:
        """Let go of the mapped files. Reading maps them again."""
        self._handles.clear()
        self._open_files.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _indexed_names(self) -> dict[str, str]:
        """The shard of each tensor as the index has it; empty where there is a single file."""
        path = self.folder / INDEX_NAME
        if (self.folder / WEIGHTS_NAME).is_file() or not path.is_file():
            return {}
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            files = set(names.values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise FineMixingError(f"{path} is not an index of shards ({type(error).__name__}: {error}).") from error
        for file in files:
            # A file name and nothing else: an index from a stranger must not make us read outside the folder.
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise FineMixingError(f"{path} names {file!r}: a shard must be a .safetensors file of that folder.")
            if not (self.folder / file).is_file():
                raise FineMixingError(f"{path} names {file!r}, which is missing: download the folder again.")
        return names

    def _single_file(self) -> Path:
        path = self.folder / WEIGHTS_NAME
        if path.is_file():
            return path
        if not self.folder.is_dir():
            raise FineMixingError(f"{self.folder} is not a folder: give a local model folder or a Hub id.")
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        found = "nothing of a model" if not (self.folder / "config.json").is_file() else "no weights at all"
        advice = "give a folder that save_pretrained wrote, or a Hub id"
        if pickles:
            found = f"only pickled weights ({', '.join(pickles)}), which can run code when loaded"
            advice = "ask for a safetensors version"
        raise FineMixingError(f"{self.folder} has no {WEIGHTS_NAME} and no {INDEX_NAME}, {found}: {advice}.")

    def _add_file(self, path: Path) -> None:
        handle = self._handle(path)
        for name in handle.keys():  # noqa: SIM118 - a safetensors file, not a dict
            if name in self.tensors:
                raise FineMixingError(f"{self.folder}: {name} is both in {self._file_of[name].name} and {path.name}.")
            view = handle.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise FineMixingError(f"{path}: {name} has dtype {view.get_dtype()}, which cannot be mixed.")
            self._file_of[name] = path
            self.tensors[name] = TensorInfo(tuple(view.get_shape()), _DTYPES[view.get_dtype()])

    def _handle(self, path: Path) -> safe_open:
        if path not in self._handles:
            try:
                self._handles[path] = self._open_files.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise FineMixingError(f"{path} is not a readable safetensors file ({error}): get it again.") from error
        return self._handles[path]


def row_chunks(shape: tuple[int, ...], elements: int) -> Iterator[tuple[int, int, int]]:
    """
    Cut a tensor along its first dimension into slices of about `elements` scalars.

    Yields:
        `(first_row, last_row + 1, index of the slice's first element in the flattened tensor)`.
    """
    row = 1
    for size in shape[1:]:
        row *= size
    rows = max(1, elements // max(row, 1))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0]), start * row


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
