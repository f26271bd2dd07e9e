"""What the user calls a model: a folder, or `org/name` or `org/name@revision` on the Hub."""

import os
import re

from ..errors import FineMixingError

__all__ = ["is_repo_id", "split_revision"]

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_REVISION = re.compile(r"[\w./-]{1,200}")


def is_repo_id(text: str) -> bool:
    """Whether it looks like `name` or `org/name`."""
    return len(text) <= 200 and bool(_REPO_ID.fullmatch(text))


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """
    The name and the revision of `org/name@revision`; any other name, as a folder that is there, is left as it is.

    Raises:
        [`FineMixingError`]: Another revision is given beside it.
    """
    repo, at, wanted = name.partition("@")
    if not at or not is_repo_id(repo) or not _REVISION.fullmatch(wanted) or os.path.exists(name):
        return name, revision
    if revision not in (None, wanted):
        raise FineMixingError(f"{name} and the revision {revision} beside it are two: give one of them.")
    return repo, wanted
