"""A repo id or a path in, a local folder out: pinned to one commit, holding neither code nor pickles."""

import glob
import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FineMixingError
from ..io.checkpoint import INDEX_NAME, WEIGHTS_NAME, read_object, sha256_of_file
from ..io.folder import LocalModel, copy_small_files
from ..io.pickles import PICKLED_ADAPTER_NAME, PICKLED_INDEX_NAME, PICKLED_NAME, convert_pickles, pickled_files
from ..io.repo_names import is_repo_id, split_revision
from ..repo_contents import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from .errors import hub_api, hub_error, is_unreachable
from .listing import RepoContents, inspect_repo, needed_files

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

__all__ = [
    "TrustArguments",
    "cached_folder",
    "cached_folders",
    "check_custom_code",
    "fetch_model",
    "fetch_small_files",
    "is_repo_id",
    "local_folder",
]

logger = logging.getLogger(__name__)


@dataclass
class TrustArguments:
    """
    What of a stranger's repo is taken that is refused otherwise.

    Parameters:
        allow_pickle (`bool`, *optional*, defaults to `False`):
            Read pickled weights where there are no safetensors: scanned first, read as data alone.
        ignore_custom_code (`list[str]`, *optional*):
            Ids or folders of models that ask for code of their own and are read with transformers' own class all the
            same. The code is neither fetched nor run.
    """

    allow_pickle: bool = field(
        default=False,
        metadata={"help": "Read pickled weights where there are no safetensors: scanned first, read as data alone."},
    )
    ignore_custom_code: list[str] | None = field(
        default=None,
        metadata={"help": "Models that ask for code of their own, to be read without it: their ids or folders."},
    )


def fetch_model(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    role: str = "model",
    trust: TrustArguments | None = None,
    only_hub: bool = False,
    to_read: bool = True,
) -> LocalModel:
    """
    Find a model folder, or download it from the Hub at one commit: safetensors, config and tokenizer files only.

    Args:
        name_or_path (`str` or `Path`): A local folder, which wins, or a Hub id, also as `org/name@revision`.
        revision (`str`, *optional*): Branch, tag or commit on the Hub; the main branch by default.
        role (`str`, *optional*): What the model is for, for messages.
        trust ([`TrustArguments`], *optional*): What is taken although it is refused by default.
        only_hub (`bool`, *optional*, defaults to `False`): The name is a stranger's: never take it for a path.
        to_read (`bool`, *optional*, defaults to `True`): Its weights are to be read: see first that they are those
            that the Hub lists.

    Raises:
        [`FineMixingError`]: There is no such folder or repo, it may not be read, the Hub cannot be reached, there are
            no safetensors, a file has not the SHA-256 that the Hub lists, or the model asks for code of its own.
    """
    trust, name = trust or TrustArguments(), str(name_or_path)
    model = None if only_hub else local_folder(name, revision, role)
    if model is None:
        model = _from_hub(name, revision, role, lambda contents: _choose(contents, trust), to_read=to_read)
    check_custom_code(model, trust)
    return _without_pickles(model) if trust.allow_pickle else model


def fetch_small_files(repo: str, revision: str | None = None, *, role: str = "model") -> LocalModel:
    """The configuration and the card of a repo on the Hub, without its weights. Raises as [`fetch_model`] does."""
    wanted = ("config.json", ADAPTER_CONFIG_NAME, "README.md")
    return _from_hub(repo, revision, role, lambda contents: [name for name in wanted if name in contents.sizes])


def local_folder(name: str, revision: str | None, role: str) -> LocalModel | None:
    """The folder of that name here, which wins over a Hub id; `None` where there is none. A file is neither."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            raise FineMixingError(f"the {role} {name!r} is neither a folder nor a Hub id like org/name: check it.")
        if not name or not path.is_dir():
            return None
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home that does not exist, a zero byte
        if isinstance(error, FineMixingError):
            raise
        return None
    if revision is not None:
        raise FineMixingError(
            f"the {role} {name} is a folder here, of which there is no revision {revision}: leave the revision away, "
            "or, for the repo of that name on the Hub, run this from another folder."
        )
    return LocalModel(name, path)


def _choose(contents: RepoContents, trust: TrustArguments) -> list[str]:
    """All that is needed of a model, unless the Hub has it down for code of its own."""
    if "custom_code" in contents.tags and contents.id not in (trust.ignore_custom_code or ()):
        raise _asks_for_code(contents.id, "its tag custom_code")
    chosen = needed_files(contents, allow_pickle=trust.allow_pickle)
    logger.info("%s", contents.describe(chosen))
    return chosen


def _from_hub(
    name: str,
    revision: str | None,
    role: str,
    choose: Callable[[RepoContents], list[str]],
    *,
    to_read: bool = False,
) -> LocalModel:
    from huggingface_hub import is_offline_mode, snapshot_download

    repo, revision = split_revision(name, revision)
    if not is_repo_id(repo):
        raise FineMixingError(f"the {role} {name!r} is neither a folder nor a Hub id like org/name: check it.")
    what = f"the {role} {repo}"
    try:
        contents = None if is_offline_mode() else inspect_repo(repo, revision)
    except Exception as error:
        told = error if isinstance(error, FineMixingError) else hub_error(error, what)
        cached = _from_cache(repo, revision, what, choose, to_read) if is_unreachable(error) else None
        if cached is None:
            raise told from error
        logger.warning("The Hub cannot be reached: %s @ %s is taken from the cache.", repo, cached.revision[:7])
        return cached
    if contents is None:
        if (cached := _from_cache(repo, revision, what, choose, to_read)) is None:
            raise hub_error(ConnectionError(), what)
        return cached
    try:
        chosen = choose(contents)
        patterns = [glob.escape(name) for name in chosen]
        folder = Path(snapshot_download(repo, revision=contents.revision, allow_patterns=patterns))
    except FineMixingError:
        raise
    except Exception as error:
        raise hub_error(error, what) from error
    left = [name for name in contents.code_and_pickles() if name not in chosen]
    security = {"hub_scan": contents.scan, "flagged": contents.flagged, "not_taken": left[:100]}
    listed = {name: contents.sha256[name] for name in chosen if name in contents.sha256} if to_read else {}
    _check_bytes(folder, listed, what)
    return LocalModel(repo, folder, contents.sha, security, listed, contents)


def _from_cache(
    repo: str, revision: str | None, what: str, choose: Callable[[RepoContents], list[str]], to_read: bool
) -> LocalModel | None:
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
    listed = {name: path.name for name, path in blobs.items() if _is_large_blob(path)}
    _check_bytes(folder, listed, what)
    security = {"hub_scan": "unknown", "flagged": {}, "not_taken": []}
    return LocalModel(repo, folder, folder.name, security, listed)


def _whole(
    folder: Path,
    resolved: "ResolvedRevision",
    tree: dict[str, int],
    what: str,
    choose: Callable[[RepoContents], list[str]],
) -> list[str]:
    """
    What is needed of a repo and is in the cache.

    Raises:
        [`FineMixingError`]: A file that is needed is not; only the card can be done without.
    """
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


def _is_large_blob(path: Path) -> bool:
    """Whether it is a file of the cache that is called by its SHA-256, as all large ones are."""
    return path.parent.name == "blobs" and bool(re.fullmatch("[0-9a-f]{64}", path.name))


def _check_bytes(folder: Path, listed: dict[str, str], what: str) -> None:
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


def check_custom_code(model: LocalModel, trust: TrustArguments) -> None:
    """Raise a [`FineMixingError`] for a model whose files ask for code of its own, unless the user named it."""
    asking = []
    for file in ("config.json", "tokenizer_config.json", ADAPTER_CONFIG_NAME):
        content = read_object(model.folder, file)
        keys = ("auto_map", "auto_mapping", "custom_pipelines", "trust_remote_code")
        asking += [f"{key} in {file}" for key in keys if content.get(key)]
    if not asking:
        return
    if model.id not in (trust.ignore_custom_code or ()):
        raise _asks_for_code(model.id, ", ".join(asking))
    logger.warning("%s asks for code of its own (%s): it is not run.", model.id, ", ".join(asking))


def _asks_for_code(model: str, where: str) -> FineMixingError:
    return FineMixingError(
        f"{model} asks for code of its own ({where}), which is never run: to read it with transformers' own class, "
        f"if there is one, name it: --ignore-custom-code {model}."
    )


def _without_pickles(model: LocalModel) -> LocalModel:
    """The same model with pickled weights, where it has no others, written anew as safetensors."""
    readable = (WEIGHTS_NAME, INDEX_NAME, ADAPTER_WEIGHTS_NAME)
    if any((model.folder / name).is_file() for name in readable) or not pickled_files(model.folder):
        return model
    temporary = tempfile.TemporaryDirectory(prefix="hf_finemix_")
    folder = Path(temporary.name)
    note = convert_pickles(model.folder, folder)
    copy_small_files(model.folder, folder)
    logger.info("%s: pickled weights were scanned (%s) and read as data alone.", model.id, note["scanner"])
    security = {"hub_scan": "unknown", "flagged": {}, "not_taken": [], **(model.security or {}), "pickles": note}
    return replace(model, folder=folder, security=security, temporary=temporary)
