"""What the cache of the Hub holds of a model, and whether it is what the Hub lists."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FineMixingError
from ..io.checkpoint import INDEX_NAME, WEIGHTS_NAME, sha256_of_file
from ..io.folder import LocalModel
from ..io.pickles import PICKLED_ADAPTER_NAME, PICKLED_INDEX_NAME, PICKLED_NAME
from ..io.repo_names import is_repo_id
from ..repo_contents import ADAPTER_WEIGHTS_NAME
from .errors import hub_api
from .listing import Choice, RepoContents

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision


logger = logging.getLogger(__name__)

_SHA256 = re.compile("[0-9a-f]{64}")  # by which the cache calls all large files


def from_cache(repo: str, revision: str | None, what: str, choose: Choice, to_read: bool) -> LocalModel | None:
    """What an earlier run fetched of a repo: all that is needed, by the list of its files that is cached too."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError

    try:
        resolved = hub_api().resolve_revision(repo, revision=revision, local_files_only=True)
        folder = Path(snapshot_download(repo, revision=resolved, allow_patterns=["no file"], local_files_only=True))
    except (LocalEntryNotFoundError, RevisionResolutionError):
        return None
    try:
        tree = {file.path: file.size for file in get_cached_repo_tree(repo, revision=resolved)}
    except CachedRepoTreeNotFoundError:
        weights = (WEIGHTS_NAME, INDEX_NAME, PICKLED_NAME, ADAPTER_WEIGHTS_NAME, PICKLED_ADAPTER_NAME)
        if not any((folder / name).is_file() for name in weights):
            return None
        logger.warning("The cache does not say what else %s has: what is there is taken for all of it.", repo)
        chosen = [path.name for path in folder.glob("*.safetensors")]
    else:
        chosen = _whole(folder, resolved, tree, what, choose)
    blobs = {name: (folder / name).resolve() for name in chosen if to_read}
    large = [name for name, path in blobs.items() if path.parent.name == "blobs" and _SHA256.fullmatch(path.name)]
    listed = {name: blobs[name].name for name in large}
    check_bytes(folder, listed, what)
    security = {"hub_scan": "unknown", "flagged": {}, "not_taken": []}
    return LocalModel(repo, folder, folder.name, security, listed)


def _whole(folder: Path, resolved: "ResolvedRevision", tree: dict[str, int], what: str, choose: Choice) -> list[str]:
    """What is needed of a repo and is in the cache, or an error: only the card can be done without."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = f"{what} @ {resolved.resolved[:7]} is in the cache only in part"
    try:
        chosen = choose(RepoContents(what.rsplit(" ", 1)[-1], resolved, tree))
    except LocalEntryNotFoundError:  # of an index, without which the shards are not known
        chosen = sorted({INDEX_NAME, PICKLED_INDEX_NAME} & tree.keys())
    missing = [name for name in chosen if not (folder / name).is_file()]
    present = [name for name in chosen if name not in missing]
    if "tokenizer.json" in present:  # which holds what the vocabulary files say
        missing = [name for name in missing if name.endswith((".json", ".safetensors", ".bin", ".md"))]
    if "README.md" in missing:
        logger.warning("%s: its card is not there, so neither its license nor what it says of its base.", where)
        missing.remove("README.md")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FineMixingError(
            f"{where}, which lacks {', '.join(missing[:3])}{more}: run this once with the Hub in reach."
        )
    return present


def check_bytes(folder: Path, listed: dict[str, str], what: str) -> None:
    """Raise a [`FineMixingError`] where a file, just fetched or from the cache, is not the one that the Hub lists."""
    for name, sha256 in listed.items():
        if (found := sha256_of_file(folder / name)) != sha256:
            raise FineMixingError(
                f"{what}: {name} has not the SHA-256 that the Hub lists ({found[:12]}…, not {sha256[:12]}…): delete "
                f"{(folder / name).resolve()}, and run this again to fetch it anew."
            )


def cached_folder(name_or_path: str) -> Path | None:
    """
    The folder of a path, or of a Hub id whose weights are in the cache: those of its main branch, or else the only
    ones there. `None` otherwise. Never downloads.
    """
    from huggingface_hub import try_to_load_from_cache

    if name_or_path and Path(name_or_path).is_dir():
        return Path(name_or_path)
    if not is_repo_id(name_or_path):
        return None
    for file in (WEIGHTS_NAME, INDEX_NAME):
        cached = try_to_load_from_cache(name_or_path, file)
        if isinstance(cached, str):
            return Path(cached).parent
    folders = cached_folders(name_or_path)
    return folders[0] if len(folders) == 1 else None


def cached_folders(repo: str) -> list[Path]:
    """Every commit of a repo whose weights are in the cache, once for the same weights."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots")
    found = {}
    for folder in sorted(snapshots.iterdir()) if snapshots.is_dir() else ():
        if weights := [file.resolve() for file in sorted(folder.glob("*.safetensors"))]:
            found.setdefault(tuple(weights), folder)
    return list(found.values())
