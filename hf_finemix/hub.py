"""A repo id or a path in, a local folder out: pinned to one commit, holding neither code nor pickles."""

import glob
import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checkpoint import INDEX_NAME, WEIGHTS_NAME, read_object
from .errors import FineMixingError
from .hub_errors import hub_api, hub_error, is_unreachable
from .pickles import PICKLED_ADAPTER_NAME, PICKLED_NAME, convert_pickles, pickled_files
from .repo_contents import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    RepoContents,
    copy_small_files,
    inspect_repo,
    needed_files,
)

__all__ = [
    "LocalModel",
    "TrustArguments",
    "cached_folder",
    "check_custom_code",
    "fetch_model",
    "fetch_small_files",
    "is_folder",
    "is_repo_id",
]

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


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
    """

    id: str
    folder: Path
    revision: str | None = None
    security: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    # What the Hub told of the repo; nothing of a folder, nor of a repo from the cache.
    contents: RepoContents | None = field(default=None, compare=False, repr=False)
    # Holds the folders of converted and merged weights, which are gone when nobody needs them.
    temporary: Any = field(default=None, compare=False, repr=False)
    # The adapter's own folder, where `folder` is what it was merged to.
    adapter: Path | None = field(default=None, compare=False, repr=False)


def is_repo_id(text: str) -> bool:
    """Whether it looks like `name` or `org/name`."""
    return len(text) <= 200 and bool(_REPO_ID.fullmatch(text))


def fetch_model(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    role: str = "model",
    trust: TrustArguments | None = None,
    only_hub: bool = False,
) -> LocalModel:
    """
    Find a model folder, or download it from the Hub at one commit: safetensors, config and tokenizer files only.

    Args:
        name_or_path (`str` or `Path`): A local folder, which wins, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub; the main branch by default.
        role (`str`, *optional*): What the model is for, for messages.
        trust ([`TrustArguments`], *optional*): What is taken although it is refused by default.
        only_hub (`bool`, *optional*, defaults to `False`): The name is a stranger's: never take it for a path.

    Raises:
        [`FineMixingError`]: There is no such folder or repo, it may not be read, the Hub cannot be reached, there are
            no safetensors, or the model asks for code of its own.
    """
    trust, name = trust or TrustArguments(), str(name_or_path)
    if not only_hub and is_folder(name, role):
        model = LocalModel(name, Path(name).expanduser())
    else:
        model = _from_hub(name, revision, role, lambda contents: _choose(contents, trust))
    check_custom_code(model, trust)
    return _without_pickles(model) if trust.allow_pickle else model


def fetch_small_files(repo: str, revision: str | None = None, *, role: str = "model") -> LocalModel:
    """The configuration and the card of a repo on the Hub, without its weights. Raises as [`fetch_model`] does."""
    wanted = ("config.json", ADAPTER_CONFIG_NAME, "README.md")
    return _from_hub(repo, revision, role, lambda contents: [name for name in wanted if name in contents.sizes])


def is_folder(name: str, role: str) -> bool:
    """Whether a name is a folder here, which wins over a Hub id. A file is an error: it is neither."""
    try:
        path = Path(name).expanduser()
        if path.is_file():
            raise FineMixingError(f"the {role} {name!r} is neither a folder nor a Hub id like org/name: check it.")
        return bool(name) and path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home that does not exist, a zero byte
        if isinstance(error, FineMixingError):
            raise
        return False


def _choose(contents: RepoContents, trust: TrustArguments) -> list[str]:
    """All that is needed of a model, unless the Hub has it down for code of its own."""
    if "custom_code" in contents.tags and contents.id not in (trust.ignore_custom_code or ()):
        raise _asks_for_code(contents.id, "its tag custom_code")
    chosen = needed_files(contents, allow_pickle=trust.allow_pickle)
    logger.info("%s", contents.describe(chosen))
    return chosen


def _from_hub(repo: str, revision: str | None, role: str, choose: Callable[[RepoContents], list[str]]) -> LocalModel:
    from huggingface_hub import is_offline_mode, snapshot_download

    if not is_repo_id(repo):
        raise FineMixingError(f"the {role} {repo!r} is neither a folder nor a Hub id like org/name: check it.")
    what = f"the {role} {repo}"
    try:
        contents = None if is_offline_mode() else inspect_repo(repo, revision)
    except Exception as error:
        told = error if isinstance(error, FineMixingError) else hub_error(error, what)
        cached = _from_cache(repo, revision) if is_unreachable(error) else None
        if cached is None:
            raise told from error
        logger.warning("The Hub cannot be reached: %s @ %s is taken from the cache.", repo, cached.revision[:7])
        return cached
    if contents is None:
        if (cached := _from_cache(repo, revision)) is None:
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
    return LocalModel(repo, folder, contents.sha, security, contents)


def _from_cache(repo: str, revision: str | None) -> LocalModel | None:
    """What an earlier run fetched of a repo, where its weights and configuration are whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    try:
        resolved = hub_api().resolve_revision(repo, revision=revision, local_files_only=True)
        folder = Path(snapshot_download(repo, revision=resolved, allow_patterns=["no file"], local_files_only=True))
    except (LocalEntryNotFoundError, RevisionResolutionError):
        return None
    weights = (WEIGHTS_NAME, INDEX_NAME, PICKLED_NAME, ADAPTER_WEIGHTS_NAME, PICKLED_ADAPTER_NAME)
    if not any((folder / name).is_file() for name in weights):
        return None
    return LocalModel(repo, folder, folder.name, {"hub_scan": "unknown", "flagged": {}, "not_taken": []})


def cached_folder(name_or_path: str) -> Path | None:
    """The folder of a path, or of a Hub id whose weights are in the cache; `None` otherwise. Never downloads."""
    from huggingface_hub import try_to_load_from_cache

    if name_or_path and Path(name_or_path).is_dir():
        return Path(name_or_path)
    if not is_repo_id(name_or_path):
        return None
    for file in (WEIGHTS_NAME, INDEX_NAME):
        cached = try_to_load_from_cache(name_or_path, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


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
