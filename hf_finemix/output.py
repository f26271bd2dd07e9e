"""An output folder that appears whole or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FineMixingError

__all__ = ["check_free_space", "output_folder"]


@contextmanager
def output_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """
    Give a folder `OUT.partial` to write to, and rename it to `OUT` at the end; on any error nothing is left.

    Args:
        final (`Path`): OUT. A folder that is not there or is empty, unless `overwrite`.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what OUT holds, once the new content is whole.

    Raises:
        [`FineMixingError`]: OUT is a file or not empty, cannot be written to, or the disk is full.
    """
    if final.exists() and not final.is_dir():
        raise FineMixingError(f"the output {final} is a file: give a folder.")
    if final.is_dir() and any(final.iterdir()) and not overwrite:
        raise FineMixingError(f"the output folder {final} is not empty: give another one, or --overwrite.")
    partial = final.with_name(final.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a run that was killed
        partial.mkdir(parents=True)
        yield partial
        old = final.with_name(final.name + ".old")
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FineMixingError(
                f"the disk of {final} is full: free some space, or give another output folder."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise FineMixingError(
                f"{final} cannot be written to ({error.strerror}): give another output folder."
            ) from error
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_free_space(folder: Path, needed: int) -> None:
    """Raise a [`FineMixingError`] where the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FineMixingError(
            f"the disk of {folder.parent} has {free / 1e6:,.0f} MB free, and {needed / 1e6:,.0f} MB are needed: "
            "free some space, or give another output folder."
        )
