"""
Pickled weights in, safetensors out, and nothing of them run.

picklescan looks for what would run: pure Python without dependencies, it knows torch's format and has lists of what
is harmless and what is not. torch then reads the file with `weights_only=True`, whatever the scan found.
"""

import logging
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import check_inside, read_json, sha256_of_file
from .errors import FineMixingError

if TYPE_CHECKING:
    import torch

__all__ = ["PICKLED_INDEX_NAME", "PICKLED_NAME", "convert_pickles", "pickled_files"]

PICKLED_NAME, PICKLED_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_PICKLE_BYTES = 1 << 26  # of the pickle inside, which holds names and shapes and no weights
MAX_ENTRIES = 1_000_000


def pickled_files(folder: Path) -> list[Path]:
    """
    The pickled weights of a folder, if any: `pytorch_model.bin`, or the shards that its index names.

    Raises:
        [`FineMixingError`]: The index cannot be read, or names something that is no file of the folder.
    """
    index = folder / PICKLED_INDEX_NAME
    if (folder / PICKLED_NAME).is_file():
        files = [folder / PICKLED_NAME]
    elif index.is_file():
        check_inside(index, folder)
        content = read_json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not names:
            raise FineMixingError(f"{index} is not an index of shards, it has no weight_map: get the folder again.")
        for name in set(map(str, names.values())):
            if not re.fullmatch(r"[\w.-]{1,200}\.bin", name) or not (folder / name).is_file():
                raise FineMixingError(f"{index} names {name[:200]!r}, which is no .bin file of that folder.")
        files = sorted({folder / name for name in names.values()})
    else:
        return []
    for file in files:
        check_inside(file, folder)
    return files


def convert_pickles(folder: Path, out: Path) -> dict[str, Any]:
    """
    Read the pickled weights of a folder as data alone, and write them into another one as safetensors.

    It takes about as much memory as the weights.

    Args:
        folder (`Path`): The folder of a suspect.
        out (`Path`): An empty folder. Nothing is left in it after an error.

    Returns:
        `dict`: For the report: `files` (SHA-256 by name), `scanner` with its version, and the `globals` that it found.

    Raises:
        [`FineMixingError`]: A file is no zip file of torch, larger inside than outside, holds anything that could run
            or that the scan could not read to its end, or anything but named tensors.
    """
    from huggingface_hub import save_torch_state_dict

    files, tensors, found = pickled_files(folder), {}, set()
    for file in files:
        _check_archive(file)
        found |= _scan(file)
        for name, tensor in _read(file).items():
            if name in tensors:
                raise FineMixingError(f"{folder}: {name[:200]!r} is in two of the pickled files: get it again.")
            tensors[name] = tensor
    if not tensors:
        raise FineMixingError(f"{folder}: the pickled weights hold no tensor: get it again.")
    try:
        save_torch_state_dict(tensors, out, metadata={"format": "pt"})
    except BaseException:
        for file in out.iterdir():
            file.unlink()
        raise
    hashes = {file.name: sha256_of_file(file) for file in files}
    return {"files": hashes, "scanner": f"picklescan {version('picklescan')}", "globals": sorted(found)}


def _check_archive(file: Path) -> None:
    """torch stores what it saves uncompressed: whatever is larger inside than outside is a bomb."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise FineMixingError(
            f"{file} is no zip file as torch.save writes it since version 1.6: ask for a safetensors version."
        ) from error
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise FineMixingError(f"{file} is larger inside than outside: a bomb, do not open it.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise FineMixingError(f"{file} is compressed, which torch never does: do not open it.")
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise FineMixingError(f"{file} holds no pickle of names and shapes, several, or a huge one: do not open it.")


def _scan(file: Path) -> set[str]:
    """The globals that the file's pickle names, none of which is known to be dangerous."""
    from picklescan.scanner import SafetyLevel, scan_file_path

    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # what it finds is told by the error
    try:
        result = scan_file_path(str(file))
    except Exception as error:
        raise FineMixingError(f"{file} could not be scanned to its end ({error}): do not open it.") from error
    dangerous = [f"{g.module}.{g.name}" for g in result.globals if g.safety == SafetyLevel.Dangerous]
    if dangerous or result.infected_files:
        listed = ", ".join(sorted(set(dangerous))[:10])
        raise FineMixingError(f"{file} would run code when loaded ({listed}): it is an attack, do not open it.")
    if result.scan_err or not result.scanned_files:
        raise FineMixingError(f"{file} could not be scanned to its end: do not open it.")
    return {f"{g.module}.{g.name}" for g in result.globals}


def _read(file: Path) -> dict[str, "torch.Tensor"]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a broken or hostile file raises has no end
        names = re.search(r"(?:GLOBAL|global|class|function):? ([\w.]+)", str(error))
        what = f"it asks for {names[1]}" if names else " ".join(str(error).split())[:120] or type(error).__name__
        raise FineMixingError(f"{file} does not hold weights alone ({what}): refused.") from error
    if not isinstance(content, dict):
        raise FineMixingError(f"{file} holds a {type(content).__name__}, not tensors by name: get another copy.")
    for name, tensor in content.items():
        plain = isinstance(name, str) and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise FineMixingError(f"{file}: {str(name)[:200]!r} is no plain tensor: get another copy.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise FineMixingError(f"{file}: {name[:200]!r} claims to be larger than it is: do not open it.")
    # Tensors may lie in one storage, as tied ones do, but not all of them everywhere.
    if sum(tensor.nbytes for tensor in content.values()) > 2 * file.stat().st_size:
        raise FineMixingError(f"{file}: the tensors claim to be larger than the file: do not open it.")
    return {name: tensor.detach().contiguous() for name, tensor in content.items()}
