"""What is copied beside weights, configuration and tokenizer: processors, and modules of sentence-transformers."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from ..repo_contents import MODULES_NAME, PROCESSOR_FILES, SENTENCE_FILES, SMALL_FILES
from .checkpoint import Checkpoint
from .folder import LocalModel, small_files, weights_in
from .safe_config import copy_without_code, without_unsafe_keys
from .safe_json import read_json

logger = logging.getLogger(__name__)

# Modules whose class reads numbers and nothing else; others can load what their settings name.
_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
_TYPE = re.compile(rf"sentence_transformers(\.\w+){{0,5}}\.({'|'.join(_MODULES)})")
_WITH_WEIGHTS = (".Dense", ".LayerNorm")
_PATH = re.compile(r"\d{1,2}_\w{1,50}")
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(activation\.\w{1,40}|linear\.Identity)")
_LOADS = re.compile(r".*(args|trust_remote_code|backend|path|file)", re.DOTALL)  # settings that say how to load
MAX_MODULES = 20


def copy_model_files(suspect: LocalModel, base: Path, folder: Path) -> None:
    """
    Put the small files into an output that are neither its configuration nor its tokenizer's.

    A processor is the base's, or else the suspect's; modules of sentence-transformers are the suspect's, where all are
    of kinds that are known to be data. What else the suspect has beside its weights is left, and said in the log.
    """
    source, theirs, ours = suspect.folder, set(small_files(suspect.folder)), set(small_files(base))
    for name in sorted(PROCESSOR_FILES & (ours | theirs)):
        copy_without_code((base if name in ours else source) / name, folder / name)
    if MODULES_NAME in theirs:
        try:
            modules = _modules(source, theirs)
        except FineMixingError as error:
            logger.warning("The sentence-transformers modules of %s are left: %s", suspect.id, error)
        else:
            _copy_modules(source, folder, modules, theirs)
    _tell_left(suspect)


def _modules(source: Path, theirs: set[str]) -> list[dict[str, Any]]:
    """What modules.json lists, and no more of it than is understood."""
    content = read_json(source / MODULES_NAME)
    if not isinstance(content, list) or len(content) > MAX_MODULES:
        raise FineMixingError(f"{MODULES_NAME} is no list of modules.")
    found = []
    for entry in content:
        entry = entry if isinstance(entry, dict) else {}
        kind, path = str(entry.get("type")), str(entry.get("path"))
        # The transformer is the one that is mixed; one in a folder would be another.
        in_place = not path if kind.endswith(".Transformer") else _PATH.fullmatch(path)
        if not _TYPE.fullmatch(kind) or not in_place:
            raise FineMixingError(f"{MODULES_NAME} names {kind[:100]!r} in {path[:60]!r}, which is not known here.")
        settings = source / path / "config.json"
        if kind.endswith(".Dense") and settings.is_file():
            activation = read_json(settings).get("activation_function", "torch.nn.modules.activation.Tanh")
            if not _ACTIVATION.fullmatch(str(activation)):
                raise FineMixingError(f"{path}/config.json names the function {str(activation)[:100]!r}.")
        if kind.endswith(_WITH_WEIGHTS) and f"{path}/model.safetensors" not in theirs:
            raise FineMixingError(f"{path} has no model.safetensors of at most 100 MB.")
        found.append({"idx": len(found), "name": str(entry.get("name"))[:60], "path": path, "type": kind})
    return found


def _copy_modules(source: Path, folder: Path, modules: list[dict[str, Any]], theirs: set[str]) -> None:
    _write(folder / MODULES_NAME, modules)
    for name in sorted((SENTENCE_FILES - {MODULES_NAME}) & theirs):
        _write(folder / name, _settings(read_json(source / name)))
    own = []
    for kind, path in ((module["type"], module["path"]) for module in modules if module["path"]):
        (folder / path).mkdir(exist_ok=True)  # some have a folder and nothing in it
        if f"{path}/config.json" in theirs:
            _write(folder / path / "config.json", _settings(read_json(source / path / "config.json")))
        if kind.endswith(_WITH_WEIGHTS):
            weights = source / path / "model.safetensors"
            Checkpoint(source, only=weights)  # or it tells what is wrong
            shutil.copyfile(weights, folder / path / weights.name)
            own.append(path)
    kept = f"; the weights of {', '.join(own)} are kept, as a head's are" if own else ""
    logger.info("The modules of sentence-transformers, and its prompts, are the suspect's%s.", kept)


def _settings(content: Any) -> Any:
    """The settings of a module without those that say how something is loaded."""
    content = without_unsafe_keys(content)
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if not _LOADS.fullmatch(key)}
    return content


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tell_left(suspect: LocalModel) -> None:
    """Say in the log which files of the suspect are not among those that are known here."""
    there = suspect.contents.sizes if suspect.contents else {path.name for path in suspect.folder.iterdir()}
    known = {*SMALL_FILES, *small_files(suspect.folder), *(file.name for file in weights_in(suspect.folder).files)}
    known |= {name.partition("/")[0] for name in known} | {".gitattributes", ".git", ".cache"}
    left = sorted(name for name in there if name not in known and name.partition("/")[0] not in known)
    if left:
        more = f" and {len(left) - 10} more" if len(left) > 10 else ""
        logger.info("Files of %s that are left: %s%s.", suspect.id, ", ".join(n[:60] for n in left[:10]), more)
