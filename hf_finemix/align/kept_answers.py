"""What a model class has told once, kept for the next run: importing one and making it takes seconds and memory."""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from ..io.safe_json import read_json

OFF = "HF_FINEMIX_DISABLE_CACHE"
# What of a config.json is no property of the class.
_OF_NO_MATTER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
_FORM = 1  # one more whenever the answers mean something else


def kept_answer(question: str, architecture: str, config: dict[str, Any], *names: Any) -> Any:
    """
    What [`keep_answer`] kept of the same question; `None` where it did not, or what is there cannot be read.

    The content is whatever a JSON file can hold: the caller makes sure that it is an answer.
    """
    path = _file_of(question, architecture, config, *names)
    try:
        return None if path is None else read_json(path)
    except (FineMixingError, OSError):
        return None


def keep_answer(answer: Any, question: str, architecture: str, config: dict[str, Any], *names: Any) -> None:
    """
    Keep an answer under `HF_HOME`, in a file of its own that appears whole; not at all where that cannot be written.

    It depends on the class, the content of its config.json, and `names`; all are JSON values.
    """
    path = _file_of(question, architecture, config, *names)
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.write_text(json.dumps(answer), encoding="utf-8")
            file.replace(path)


def _file_of(question: str, architecture: str, config: dict[str, Any], *names: Any) -> Path | None:
    """By all that the answer depends on; `None` where nothing is to be kept."""
    if os.environ.get(OFF, "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    from huggingface_hub.constants import HF_HOME

    config = {key: value for key, value in config.items() if key not in _OF_NO_MATTER}
    asked = json.dumps([_FORM, question, architecture, config, *names], sort_keys=True)
    folder = Path(HF_HOME) / "hf_finemix" / f"architectures-{version('transformers')}"
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
