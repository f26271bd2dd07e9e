"""A repo id or a path in, a local folder out: pinned to one commit, holding neither code nor pickles."""

import glob
import logging
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import FineMixingError
from ..io.checkpoint import INDEX_NAME, WEIGHTS_NAME
from ..io.folder import LocalModel, copy_small_files
from ..io.pickles import convert_pickles, pickled_files
from ..io.repo_names import is_repo_id, split_revision
from ..io.safe_json import read_object
from ..repo_contents import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from .cache import check_bytes, from_cache
from .errors import hub_error, is_unreachable
from .listing import Choice, RepoContents, inspect_repo, needed_files

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

    A folder wins over a Hub id (`org/name` or `org/name@revision`), unless `only_hub` says that the name is a
    stranger's. Weights that are `to_read` are first seen to be those that the Hub lists. The `role` is for messages.
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
        is_file, is_folder = path.is_file(), bool(name) and path.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, a home that does not exist, a zero byte
        return None
    if is_file:
        raise FineMixingError(f"the {role} {name!r} is neither a folder nor a Hub id like org/name: check it.")
    if not is_folder:
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


def _from_hub(name: str, revision: str | None, role: str, choose: Choice, *, to_read: bool = False) -> LocalModel:
    from huggingface_hub import is_offline_mode, snapshot_download

    repo, revision = split_revision(name, revision)
    if not is_repo_id(repo):
        raise FineMixingError(f"the {role} {name!r} is neither a folder nor a Hub id like org/name: check it.")
    what = f"the {role} {repo}"
    contents, unreachable = None, ConnectionError()
    try:
        contents = None if is_offline_mode() else inspect_repo(repo, revision)
    except Exception as error:
        if not is_unreachable(error):
            raise hub_error(error, what) from error
        unreachable = error
    if contents is None:
        if (cached := from_cache(repo, revision, what, choose, to_read)) is None:
            raise hub_error(unreachable, what) from unreachable
        if not is_offline_mode():
            logger.warning("The Hub cannot be reached: %s @ %s is taken from the cache.", repo, cached.revision[:7])
        return cached
    try:
        chosen = choose(contents)
        patterns = [glob.escape(name) for name in chosen]
        folder = Path(snapshot_download(repo, revision=contents.revision, allow_patterns=patterns))
    except Exception as error:
        raise hub_error(error, what) from error
    left = [name for name in contents.code_and_pickles() if name not in chosen]
    security = {"hub_scan": contents.scan, "flagged": contents.flagged, "not_taken": left[:100]}
    listed = {name: contents.sha256[name] for name in chosen if name in contents.sha256} if to_read else {}
    check_bytes(folder, listed, what)
    return LocalModel(repo, folder, contents.sha, security, listed, contents)


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
