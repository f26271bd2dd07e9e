"""Where the numbers of a report come from: weight files, libraries, memory."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

from ..io.checkpoint import Checkpoint
from ..io.folder import LocalModel
from ..repo_contents import ADAPTER_WEIGHTS_NAME

_LIBRARIES = (
    "hf_finemix",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
)


def weight_files(model: LocalModel) -> list[Path]:
    """The weight files as their publisher has them: of an adapter its own, not those that it was merged to."""
    return [model.adapter / ADAPTER_WEIGHTS_NAME] if model.adapter else Checkpoint(model.folder).files


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; `None` where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide the result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
