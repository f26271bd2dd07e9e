"""
Pickled weights in, safetensors out, and nothing of them run.

picklescan looks for what would run: pure Python without dependencies, it knows torch's format and has lists of what
is harmless and what is not. torch then reads the file with `weights_only=True`, whatever the scan found. Neither is
made for a pickle that nests a million tuples, or one tuple twice in itself sixty times: one hangs, the other crashes.
So the pickle is walked first, and may do only what `torch.save` does for tensors by name.
"""

import io
import logging
import pickletools
import re
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError, told_as
from .checkpoint import read_weight_map, sha256_of_file
from .dtypes import ITEMSIZE
from .safe_json import check_inside

if TYPE_CHECKING:
    import torch


PICKLED_NAME, PICKLED_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLED_ADAPTER_NAME = "adapter_model.bin"
# Of the pickle inside, which holds names and shapes and no weights: enough for 50,000 tensors.
MAX_PICKLE_BYTES, MAX_OPCODES = 1 << 23, 2_000_000
MAX_ENTRIES, MAX_NAME, MAX_TUPLE = 1_000_000, 500, 1000

_FUNCTIONS = {"collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_FUNCTIONS |= {"torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v3"}
_STORAGES = {f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short")}
_STORAGES |= {f"torch.{kind}Storage" for kind in ("Char", "Byte", "Bool", "ComplexDouble", "ComplexFloat")}
_STORAGES |= {"torch.storage.UntypedStorage", "torch.UntypedStorage", *(f"torch.{name}" for name in ITEMSIZE)}
_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def pickled_files(folder: Path) -> list[Path]:
    """The pickled weights of a folder, if any: `pytorch_model.bin`, its index's shards, or an adapter's."""
    index = folder / PICKLED_INDEX_NAME
    if (folder / PICKLED_NAME).is_file():
        files = [folder / PICKLED_NAME]
    elif index.is_file():
        files = sorted({folder / name for name in read_weight_map(index, "bin").values()})
    elif (folder / PICKLED_ADAPTER_NAME).is_file():
        files = [folder / PICKLED_ADAPTER_NAME]
    else:
        return []
    for file in files:
        check_inside(file, folder)
    return files


def convert_pickles(folder: Path, out: Path) -> dict[str, Any]:
    """
    Read the pickled weights of a folder as data alone, and write them into an empty one as safetensors.

    It takes about as much memory as the weights. After an error nothing is left in `out`.

    Returns:
        `dict`: For the report: `files` (SHA-256 by name), `scanner` with its version, and the `globals` that it found.
    """
    from huggingface_hub import save_torch_state_dict

    files, tensors, found = pickled_files(folder), {}, set()
    for file in files:
        pickled, sizes = _check_archive(file)
        found |= _scan(file, pickled)
        for name, tensor in _read(file, sizes).items():
            if name in tensors:
                raise FineMixingError(f"{folder}: {name!r} is in two of the pickled files: get it again.")
            tensors[name] = tensor
    if not tensors:
        raise FineMixingError(f"{folder}: the pickled weights hold no tensor: get it again.")
    try:
        name = "adapter_model" if files == [folder / PICKLED_ADAPTER_NAME] else "model"  # which is never in shards
        size = {"max_shard_size": sum(tensor.nbytes for tensor in tensors.values()) + 1} if name != "model" else {}
        pattern = f"{name}{{suffix}}.safetensors"
        save_torch_state_dict(tensors, out, metadata={"format": "pt"}, filename_pattern=pattern, **size)
    except BaseException as error:
        for file in out.iterdir():
            file.unlink()
        if isinstance(error, Exception):
            raise FineMixingError(f"{folder}: the weights cannot be written to {out} ({error}).") from error
        raise
    hashes = {file.name: sha256_of_file(file) for file in files}
    return {"files": hashes, "scanner": f"picklescan {version('picklescan')}", "globals": sorted(found)}


def _check_archive(file: Path) -> tuple[bytes, Counter[int]]:
    """The one pickle of a zip file of torch, and how often it has a storage of which size."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # torch stores what it saves uncompressed: whatever is larger inside than outside is a bomb.
            if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > file.stat().st_size:
                raise FineMixingError(f"{file} is larger inside than outside: a bomb, do not open it.")
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise FineMixingError(f"{file} is compressed, which torch never does: do not open it.")
            # torch finds entries in any case: of two that differ in it we might see one, and torch the other.
            names = Counter(entry.filename.lower() for entry in entries)
            pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES or len(names) < len(entries):
                raise FineMixingError(
                    f"{file} holds no pickle of names and shapes, several, or a huge one: do not open it."
                )
            if not re.fullmatch(r"[^/\\]+/data\.pkl", pickles[0].filename):
                raise FineMixingError(f"{file} holds no pickle of names and shapes where torch has it: get it again.")
            top = pickles[0].filename.removesuffix("data.pkl")
            if any(not name.startswith(top.lower()) or ".." in name.split("/") for name in names):
                raise FineMixingError(f"{file} holds files outside of {top[:200]!r}: do not open it.")
            order = archive.read(f"{top}byteorder") if f"{top}byteorder" in archive.namelist() else b"little"
            if order != b"little":
                raise FineMixingError(f"{file} was saved on a big-endian machine: ask for a safetensors version.")
            sizes = Counter(entry.file_size for entry in entries if entry.filename.startswith(f"{top}data/"))
            return archive.read(pickles[0]), sizes
    except FineMixingError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise FineMixingError(
            f"{file} is no zip file as torch.save writes it since version 1.6: ask for a safetensors version."
        ) from error


def _scan(file: Path, pickled: bytes) -> set[str]:
    """The globals that a pickle names, all of which are needed for tensors."""
    from picklescan.scanner import SafetyLevel, scan_pickle_bytes

    unfinished = f"{file} could not be scanned to its end"
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # what it finds is told by the error
    with told_as(unfinished, "do not open it"):  # what is wrong with a hostile pickle has no end
        named = _walk(pickled)
        # Not the whole file: it would read a tensor that happens to begin like a pickle, and of any size.
        result = scan_pickle_bytes(io.BytesIO(pickled), "data.pkl")
    dangerous = sorted({f"{g.module}.{g.name}"[:200] for g in result.globals if g.safety == SafetyLevel.Dangerous})
    if dangerous or result.infected_files:
        listed = ", ".join(dangerous[:10])
        raise FineMixingError(f"{file} would run code when loaded ({listed}): it is an attack, do not open it.")
    # An unreadable pickle without globals has no error in picklescan's result.
    if result.scan_err or {f"{g.module}.{g.name}" for g in result.globals} != named:
        raise FineMixingError(f"{unfinished}: do not open it.")
    if others := sorted(name[:200] for name in named - _FUNCTIONS - _STORAGES):
        raise FineMixingError(f"{file} does not hold weights alone (it asks for {', '.join(others[:10])}): refused.")
    return named


def _walk(pickled: bytes) -> set[str]:
    """
    The globals of a pickle that does only what `torch.save` does. Nothing is made of it.

    On the stack are a global's name, `"value"` for what cannot change, `"open"` for what can, or the size of a tuple:
    a value that is used twice must be unable to hold others, and a tuple stays small, with all that is in it.
    """
    named, memo, stack, marks = set(), {}, [], []
    for count, (opcode, argument, position) in enumerate(pickletools.genops(pickled)):
        name, taken = opcode.name, []
        if count > MAX_OPCODES:
            raise ValueError("it has too many steps")
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            start = marks.pop()
            taken, stack[start:] = stack[start:], []
        elif name in _TUPLES:
            taken, stack[-_TUPLES[name] :] = stack[-_TUPLES[name] :], []
        if name in _VALUES:
            stack.append("value")
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append("open")
        elif name == "GLOBAL":
            stack.append(argument.replace(" ", ".", 1))
            named.add(stack[-1])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("EMPTY_TUPLE", "TUPLE", *_TUPLES):
            stack.append(1 + sum(part if isinstance(part, int) else 1 for part in taken))
            if stack[-1] > MAX_TUPLE:
                raise ValueError("it has a huge tuple")
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if memo[argument] == "open":
                raise ValueError("it holds a list or a dict twice")
            stack.append(memo[argument])
        elif name in ("REDUCE", "NEWOBJ"):
            stack.pop()
            function = stack.pop()
            if function not in named:
                raise ValueError("it calls what is no function")
            stack.append("value" if function.startswith("torch._utils.") else "open")
        elif name == "BINPERSID":
            stack[-1] = "value"
        elif name in ("APPEND", "BUILD", "SETITEM"):
            del stack[-2 if name == "SETITEM" else -1 :]
        elif name == "STOP" and stack == stack[-1:] and not marks and position == len(pickled) - 1:
            return named
        elif name not in ("PROTO", "APPENDS", "SETITEMS"):
            raise ValueError(f"torch.save writes no {name} there")
    raise ValueError("it does not end")


def _read(file: Path, sizes: Counter[int]) -> dict[str, "torch.Tensor"]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's own words are long, and advise to load it without any care
        raise FineMixingError(
            f"{file} does not hold weights alone (torch cannot read it: {type(error).__name__}): refused."
        ) from error
    if not isinstance(content, dict):
        raise FineMixingError(f"{file} holds a {type(content).__name__}, not tensors by name: get another copy.")
    seen, storages, total = set(), {}, 0
    for name, tensor in content.items():
        plain = isinstance(name, str) and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise FineMixingError(f"{file}: {str(name)[:200]!r} is no plain tensor: get another copy.")
        if tensor.is_neg() or tensor.is_conj() or str(tensor.dtype).removeprefix("torch.") not in ITEMSIZE:
            raise FineMixingError(f"{file}: {name[:200]!r} is no plain tensor ({tensor.dtype}): get another copy.")
        if not name.isprintable() or len(name) > MAX_NAME or name == "__metadata__":
            raise FineMixingError(f"{file}: {name[:200]!r} is no name of a tensor: get another copy.")
        storage = tensor.untyped_storage()
        if tensor.nbytes > storage.nbytes():
            raise FineMixingError(f"{file}: {name!r} claims to be larger than it is: do not open it.")
        if storage.nbytes():
            storages[storage.data_ptr()] = storage.nbytes()
        total += tensor.nbytes
        if total > 2 * file.stat().st_size:  # tied tensors count twice
            raise FineMixingError(f"{file}: the tensors claim to be larger than the file: do not open it.")
        # Of tensors in one storage a single name would be written, and a model without a head may know another.
        if storage.data_ptr() in seen or tensor.nbytes < storage.nbytes():
            content[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    # torch takes the sizes that the pickle claims, and would read on in whatever lies behind a storage in the file.
    if Counter(storages.values()) - sizes:
        raise FineMixingError(f"{file}: a tensor claims to be larger than it is, or smaller: do not open it.")
    return {name: tensor.detach().contiguous() for name, tensor in content.items()}
