"""A model folder on this machine: whether it is an adapter, its weights, and the small files beside them."""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from ..repo_contents import _IN_FOLDERS, ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, SMALL_FILES, small_files_among
from .checkpoint import INDEX_NAME, WEIGHTS_NAME, Checkpoint
from .pickles import PICKLED_ADAPTER_NAME
from .safe_json import check_inside


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no weights of its own."""
    whole = any((folder / name).is_file() for name in (WEIGHTS_NAME, INDEX_NAME))
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not whole


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's weights, or an error where it has none, or only a pickled one."""
    file, pickled = folder / ADAPTER_WEIGHTS_NAME, folder / PICKLED_ADAPTER_NAME
    if file.is_file():
        return file
    if pickled.is_file():
        raise FineMixingError(
            f"{folder} has only pickled weights ({pickled.name}), which can run code when loaded: save the adapter "
            "anew as safetensors, or give --allow-pickle, which scans them and reads them as data alone."
        )
    raise FineMixingError(f"{folder} has an {ADAPTER_CONFIG_NAME} and no {file.name}: give the whole adapter.")


def weights_in(folder: Path) -> Checkpoint:
    """The weights of a folder: an adapter's, where it holds no others."""
    return Checkpoint(folder, only=adapter_weights(folder) if is_adapter(folder) else None)


def small_files(folder: Path) -> list[str]:
    """As [`small_files_among`], of a folder on this machine; an error for a link out of it."""
    found = {}
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        name = path.relative_to(folder).as_posix()
        if (name in SMALL_FILES or _IN_FOLDERS.fullmatch(name)) and path.is_file():
            check_inside(path, folder)
            found[name] = path.stat().st_size
    return small_files_among(found)


def copy_small_files(source: Path, target: Path, leave: Collection[str] = ()) -> None:
    """Copy the [`small_files`] of a folder into another one, but for those to `leave`."""
    for name in small_files(source):
        if name not in leave:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


@dataclass(frozen=True)
class LocalModel:
    """
    A model folder on this machine and where it is from.

    Attributes:
        id (`str`): The Hub id or the path, as the user gave it.
        folder (`Path`): The local folder.
        revision (`str`, *optional*): The commit sha, 40 hexadecimal digits; `None` for a local folder.
        security (`dict`, *optional*): For the report: what the Hub's scan says of the repo, what was left there, how
            pickled weights were read.
        sha256 (`dict[str, str]`, *optional*): Of the files whose bytes were found to have the SHA-256 that the Hub
            lists.
    """

    id: str
    folder: Path
    revision: str | None = None
    security: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    sha256: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    # What the Hub told of the repo; nothing of a folder, nor of a repo from the cache.
    contents: Any = field(default=None, compare=False, repr=False)
    # Holds the folders of converted and merged weights, which are gone when nobody needs them.
    temporary: Any = field(default=None, compare=False, repr=False)
    # The adapter's own folder, where `folder` is what it was merged to.
    adapter: Path | None = field(default=None, compare=False, repr=False)
