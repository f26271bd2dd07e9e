"""A repo id or a path in, a local folder out, pinned to one commit."""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import FineMixingError

__all__ = ["ALLOWED_FILES", "LocalModel", "cached_folder", "fetch_model", "hub_error", "is_repo_id"]

# Weights, configuration and tokenizer as data: never code, never pickles.
ALLOWED_FILES = [
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "README.md",
    "cleaning_report.json",
    "fine_mixing_config.json",
]
_REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class LocalModel:
    """
    A model folder on this machine and where it is from.

    Attributes:
        id (`str`): The Hub id or the path, as the user gave it.
        folder (`Path`): The local folder.
        revision (`str`, *optional*): The commit sha, 40 hexadecimal digits; `None` for a local folder.
    """

    id: str
    folder: Path
    revision: str | None = None


def is_repo_id(text: str) -> bool:
    """Whether it looks like `name` or `org/name`."""
    return len(text) <= 200 and bool(_REPO_ID.fullmatch(text))


def fetch_model(name_or_path: str | Path, revision: str | None = None, *, role: str = "model") -> LocalModel:
    """
    Find a model folder, or download it from the Hub at one commit: safetensors, config and tokenizer files only.

    Args:
        name_or_path (`str` or `Path`): A local folder, which wins, or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub; the main branch by default.
        role (`str`, *optional*): What the model is for, for messages.

    Raises:
        [`FineMixingError`]: There is no such folder or repo, it may not be read, or the Hub cannot be reached.
    """
    try:
        path = Path(name_or_path).expanduser()
        if path.is_dir() and str(name_or_path):
            return LocalModel(str(name_or_path), path)
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that does not exist, a zero byte
        is_file = True
    if is_file or not is_repo_id(str(name_or_path)):
        raise FineMixingError(
            f"the {role} {str(name_or_path)!r} is neither a folder nor a Hub id like org/name: check it."
        )

    from huggingface_hub import snapshot_download

    try:
        # Resolves the revision to a commit once, fetches all files at it, and names the folder by it. Without the Hub
        # it takes what is in the cache.
        folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=ALLOWED_FILES))
    except Exception as error:
        raise hub_error(error, f"the {role} {name_or_path}") from error
    return LocalModel(str(name_or_path), folder, folder.name)


def cached_folder(name_or_path: str) -> Path | None:
    """The folder of a path, or of a Hub id whose weights are in the cache; `None` otherwise. Never downloads."""
    from huggingface_hub import try_to_load_from_cache

    if name_or_path and Path(name_or_path).is_dir():
        return Path(name_or_path)
    if not is_repo_id(name_or_path):
        return None
    for file in ("model.safetensors", "model.safetensors.index.json"):
        cached = try_to_load_from_cache(name_or_path, file)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def hub_error(error: Exception, what: str) -> FineMixingError:
    """The one-line error for something that went wrong while talking to the Hub. Other errors are raised again."""
    import httpx2
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        why = "is gated: accept its terms on its Hub page and log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        why = "is not a local folder and not on the Hub (or private: log in with `hf auth login`): check its name"
    elif isinstance(error, RevisionNotFoundError):
        why = "has no such revision: check the branch, tag or commit"
    elif isinstance(error, OfflineModeIsEnabled) or is_offline_mode():
        why = (
            "is neither here nor in the cache, and the Hub is switched off (HF_HUB_OFFLINE): give a path, or unset it"
        )
    elif isinstance(error, (LocalEntryNotFoundError, httpx2.TransportError, ConnectionError)):
        why = "is not a local folder, and the Hub cannot be reached: check the path or the connection"
    elif isinstance(error, HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", "an error")
        why = f"could not be read from the Hub, which answered {status}: try again later, or log in"
    else:
        raise error
    return FineMixingError(f"{what} {why}.")
