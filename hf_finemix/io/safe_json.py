"""JSON of a stranger: read with limits, and from nowhere but its own folder."""

import json
from pathlib import Path
from typing import Any

from ..errors import FineMixingError, told_as

# Ten times what the headers and indexes of the largest public models take, and little enough to be parsed in a moment.
MAX_HEADER_BYTES = 1 << 24
MAX_JSON_ENTRIES = 1_000_000


def read_json(path: Path, *, max_bytes: int = MAX_HEADER_BYTES, max_entries: int = MAX_JSON_ENTRIES) -> Any:
    """The content of a regular JSON file that may come from a stranger: of bounded size, in UTF-8, no key twice."""
    if not path.is_file():  # nor a pipe, which would never end
        raise FineMixingError(f"{path} is missing or no regular file: give the whole folder.")
    with told_as(f"{path} cannot be read as JSON", "get it again", (OSError, ValueError, RecursionError)):
        with open(path, "rb") as file:
            text = file.read(max_bytes + 1)
        if len(text) > max_bytes or text.count(b",") > max_entries:
            raise FineMixingError(f"{path} is far too large for what it is: it is broken, or meant to break.")
        return json.loads(text.decode("utf-8"), object_pairs_hook=no_key_twice)


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a model folder; empty where the file is missing or holds something else."""
    path = folder / name
    if not path.is_file():
        return {}
    check_inside(path, folder)
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def check_inside(path: Path, folder: Path) -> None:
    """Raise a [`FineMixingError`] for a link that leads out of the folder, or of its part of the Hub's cache."""
    try:
        home, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise FineMixingError(f"{path} is a link that leads nowhere: get the folder again.") from error
    if target.is_relative_to(home):
        return
    # A snapshot of the cache: models--org--name/snapshots/<sha>/file → models--org--name/blobs/<hash>
    repo = home.parent.parent
    if home.parent.name == "snapshots" and repo.name.startswith("models--") and target.parent == repo / "blobs":
        return
    raise FineMixingError(f"{path} is a link to a file outside its folder: copy the file there if you trust it.")
