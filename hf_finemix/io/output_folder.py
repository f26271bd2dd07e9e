"""An output folder that appears whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import FineMixingError
from ..repo_contents import REPORT_NAME

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def output_folder(
    final: Path, *, overwrite: bool = False, marker: str = REPORT_NAME, resume: bool = False
) -> Iterator[Path]:
    """
    Give a folder `OUT.partial` to write to, and rename it to `OUT` at the end; on any error nothing is left.

    Args:
        final (`Path`): OUT. A folder that is not there or is empty, unless `overwrite`.
        overwrite (`bool`, *optional*, defaults to `False`): Replace the model that OUT holds, once the new one is
            whole.
        marker (`str`, *optional*): The file by which such a model is known; by default the cleaning report.
        resume (`bool`, *optional*): Give what an interrupted run left in `OUT.partial`, and leave what an error
            interrupts.
    """
    final = final.resolve()  # "." has no name to put ".partial" behind
    if final.exists() and not final.is_dir():
        raise FineMixingError(f"the output {final} is a file: give a folder.")
    if final.is_mount():
        raise FineMixingError(f"the output folder {final} is a mount point, not to be replaced: give a folder in it.")
    if final.is_dir() and any(final.iterdir()):
        if not overwrite:
            raise FineMixingError(f"the output folder {final} is not empty: give another one, or --overwrite.")
        if not (final / marker).is_file():
            what = "cleaned model" if marker == REPORT_NAME else f"model with a {marker}"
            raise FineMixingError(f"the output folder {final} holds no {what} to overwrite: give another one.")
    partial = final.with_name(final.name + ".partial")
    made = [folder for folder in partial.parents if not folder.exists()]
    try:
        if partial.exists() and not resume:
            shutil.rmtree(partial)  # of a run that was killed
        partial.mkdir(parents=True, exist_ok=resume)
    except OSError as error:
        raise FineMixingError(
            f"the output folder {final} cannot be made ({error.strerror}): give another one."
        ) from error
    try:
        yield partial
        _replace(final, partial)
    except BaseException as error:
        if not (resume and partial.is_dir() and any(partial.iterdir())):
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if _is_full(error):
            raise FineMixingError(
                f"the disk of {final} is full: free some space, or give another output folder."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Put a text into the place of a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FineMixingError(f"{path} cannot be written ({error.strerror}): check its folder.") from error


def _replace(final: Path, partial: Path) -> None:
    """Put the new folder in the place of the old one, or leave the old one where it is."""
    for path in (*partial.rglob("*"), partial):  # or a power cut could leave a whole folder of half files
        _sync(path)
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        if final.exists():
            final.rename(aside / "old")
        try:
            partial.rename(final)
        except BaseException:
            if (aside / "old").exists():
                (aside / "old").rename(final)
            raise
    finally:
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Return when a file, or what a folder lists, is on the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every system syncs folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, SafetensorError):  # it has the number in its words only
        return any(f"(os error {number})" in str(error) for number in DISK_FULL)
    return isinstance(error, OSError) and error.errno in DISK_FULL


def check_free_space(folder: Path, needed: int) -> None:
    """Raise a [`FineMixingError`] where the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FineMixingError(
            f"the disk of {folder.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed: "
            "free some space, or give another output folder."
        )
