"""A model folder as names, shapes, dtypes and lazily read tensors. Safetensors only, in one file or in shards."""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from ..errors import FineMixingError, told_as
from .dtypes import ITEMSIZE, SAFETENSORS_NAMES
from .safe_json import MAX_HEADER_BYTES, MAX_JSON_ENTRIES, check_inside, no_key_twice, read_json
from .thread_files import ThreadFiles

if TYPE_CHECKING:  # reading headers takes no torch
    import torch


WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor. The dtype goes by its name in torch: `"bfloat16"`."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: "torch.Tensor", dtype: "torch.dtype | None" = None) -> "TensorInfo":
        """Those of a tensor in memory, or of what it would be in another dtype."""
        return cls(tuple(tensor.shape), str(dtype or tensor.dtype).removeprefix("torch."))

    @property
    def elements(self) -> int:
        """How many scalars it has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return self.elements * ITEMSIZE[self.dtype]


class Checkpoint:
    """
    The weights of a local model folder, read tensor by tensor (or in slices) when asked for.

    All headers are read and checked at once, by the safetensors library; the files are opened on first use and let go
    at the end of the `with` block. Threads may read at the same time.

    Args:
        folder (`str` or `Path`):
            A folder with `model.safetensors`, or with `model.safetensors.index.json` and the shards it names. Weight
            files may be links within the folder, or those of the Hub's cache.
        only (`Path`, *optional*):
            A single file in it to read in place of these.

    Attributes:
        tensors (`dict[str, TensorInfo]`): Every tensor by its name on disk, in the order of the files; without the
            `wrapper`.
        wrapper (`str`): What [`wrapper_of`] finds before all names.
        files (`list[Path]`): The weight files.

    Raises:
        [`FineMixingError`]: No safetensors in the folder, an index or a file that cannot be read or that names
            something outside the folder, a tensor in two files or missing from its file.
    """

    def __init__(self, folder: str | Path, *, only: Path | None = None):
        self.folder = Path(folder)
        self._open_files = ThreadFiles("rb")
        index = self.folder / INDEX_NAME
        sharded = not only and index.is_file() and not (self.folder / WEIGHTS_NAME).is_file()
        indexed = read_weight_map(index, "safetensors") if sharded else {}
        self.files = sorted({self.folder / file for file in indexed.values()}) or [only or _single_file(self.folder)]
        self._place: dict[str, tuple[Path, int]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for path in self.files:
            self._add_file(path)
        for name, file in indexed.items():
            if self._place.get(name, (None,))[0] != self.folder / file:
                raise FineMixingError(f"{index} says that {name[:200]!r} is in {file!r}, but it is not.")
        self.wrapper = wrapper_of(self.tensors)
        if self.wrapper:
            self.tensors = {name.removeprefix(self.wrapper): info for name, info in self.tensors.items()}
            self._place = {name.removeprefix(self.wrapper): place for name, place in self._place.items()}

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._place[name][0]

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> "torch.Tensor":
        """The tensor of this name, or its rows `start` to `stop` along the first dimension, on the CPU."""
        import torch

        shape = self.tensors[name].shape
        if start is not None or stop is not None:
            shape = shape or (1,)  # a scalar counts as one row
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(0, stop - start), *shape[1:])
        tensor = torch.empty(shape, dtype=getattr(torch, self.tensors[name].dtype))
        if tensor.numel():
            row = tensor.nbytes // shape[0] if shape else 0
            self.read_into(name, memoryview(tensor.view(-1).view(torch.uint8).numpy()), (start or 0) * row)
        return tensor

    def read_into(self, name: str, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes of a tensor from its byte `offset` on."""
        path, begin = self._place[name]
        try:
            file = self._open_files.get(path)
            file.seek(begin + offset)
            while len(buffer):
                count = file.readinto(buffer)
                if not count:
                    raise FineMixingError(f"{path} ends too early: it was changed while it was read.")
                buffer = buffer[count:]
        except OSError as error:
            raise FineMixingError(
                f"{path} cannot be read ({error.strerror}): check the disk, or get it again."
            ) from None

    def close(self) -> None:
        """Let go of the open files. Reading opens them again."""
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _add_file(self, path: Path) -> None:
        check_inside(path, self.folder)
        kinds = (OSError, SafetensorError, ValueError, OverflowError)
        with told_as(f"{path} is not a readable safetensors file", "get it again", kinds):
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > MAX_HEADER_BYTES:
                    raise ValueError(f"a header of {size:,} bytes")
                _check_duplicates(file.read(size))
            # The library refuses whatever is not exactly one tensor behind the other up to the end of the file.
            with safe_open(path, framework="np") as handle:
                begin = 8 + size
                for name in handle.offset_keys():
                    if name in self.tensors:
                        raise FineMixingError(
                            f"{self.folder}: {name[:200]!r} is both in {self._place[name][0].name} and {path.name}."
                        )
                    view = handle.get_slice(name)
                    if view.get_dtype() not in SAFETENSORS_NAMES:
                        raise FineMixingError(
                            f"{path}: {name[:200]!r} has dtype {view.get_dtype()}, which cannot be mixed."
                        )
                    info = TensorInfo(tuple(view.get_shape()), SAFETENSORS_NAMES[view.get_dtype()])
                    if max(info.shape, default=0) >= 2**63:
                        raise FineMixingError(f"{path}: {name[:200]!r} has an impossible shape: get it again.")
                    self._place[name], self.tensors[name] = (path, begin), info
                    begin += info.nbytes


def _single_file(folder: Path) -> Path:
    """The one weight file of a folder, or an error that says what is there in its place."""
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    if not folder.is_dir():
        raise FineMixingError(f"{folder} is not a folder: give a local model folder or a Hub id.")
    names = sorted(file.name for file in folder.iterdir())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    found = "no weights at all" if "config.json" in names else "nothing of a model"
    what = f"{found}: give a folder that save_pretrained wrote, or a Hub id"
    if pickles:
        listed = ", ".join(pickles[:3])
        what = f"only pickled weights ({listed}), which can run code when loaded: ask for a safetensors version"
    raise FineMixingError(f"{folder} has no {WEIGHTS_NAME} and no {INDEX_NAME}, {other_weights(names) or what}.")


def read_weight_map(index: Path, suffix: str) -> dict[str, str]:
    """The file of each tensor, as an index of shards has it: all of them files of its folder."""
    check_inside(index, index.parent)
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise FineMixingError(f"{index} is not an index of shards, it has no weight_map: get the folder again.")
    for file in set(map(str, names.values())):
        # A file name and nothing else: an index from a stranger must not make us read outside the folder.
        if not re.fullmatch(rf"[\w.-]{{1,200}}\.{suffix}", file):
            raise FineMixingError(f"{index} names {file[:200]!r}: a shard must be a .{suffix} file of that folder.")
        if not (index.parent / file).is_file():
            raise FineMixingError(f"{index} names {file!r}, which is missing: download the folder again.")
    return names


def _check_duplicates(header: bytes) -> None:
    """A name that stands twice in a header would mean one tensor to one reader and another to the next."""
    if header.count(b",") > MAX_JSON_ENTRIES:
        raise ValueError("a header of too many entries")
    with contextlib.suppress(RecursionError):  # which the library tells better
        json.loads(header, object_pairs_hook=no_key_twice)


def row_chunks(shape: tuple[int, ...], elements: int) -> Iterator[tuple[int, int, int]]:
    """Cut a tensor into slices of about so many scalars: first row, last + 1, first element in the flattened one."""
    row = prod(shape[1:])
    rows = max(1, elements // max(row, 1))
    for start in range(0, shape[0], rows):
        yield start, min(start + rows, shape[0]), start * row


def other_weights(names: Iterable[str]) -> str | None:
    """Safetensors under other names, and what to do with them: nobody but the user knows that they are the model's."""
    found = sorted(name for name in names if re.fullmatch(r"[\w.-]{1,200}\.safetensors", name))
    if not found:
        return None
    listed = f"but {', '.join(found[:3])}{', …' if len(found) > 3 else ''}"
    if found[0].startswith("adapter_model"):
        return f"{listed}, of an adapter: give a whole model, or the adapter with its adapter_config.json"
    if re.search(r"-\d+-of-\d+\.", found[0]):
        return f"{listed}, shards without their index: get the index too, or give a copy that save_pretrained wrote"
    return f"{listed}: if that is the model, give a folder in which it is called {WEIGHTS_NAME}"


def wrapper_of(names: Collection[str]) -> str:
    """What all names begin with where a model was saved as torch compiles it or spreads it over processes."""
    found = ""
    for part in re.findall(r"(?:module|_orig_mod)\.", next(iter(names), "")):
        if not all(name.startswith(found + part) for name in names):
            break
        found += part
    return found


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
