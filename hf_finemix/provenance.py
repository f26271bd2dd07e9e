"""What a report says of where its numbers come from: files, libraries, memory."""

import platform
import sys
from importlib.metadata import version
from typing import Any

from .checkpoint import Checkpoint, sha256_of_file
from .hub import LocalModel

__all__ = ["described", "peak_memory", "versions"]

_LIBRARIES = (
    "hf_finemix",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "wordfreq",
)


def described(model: LocalModel) -> dict[str, Any]:
    """Id, commit (`None` for a local folder) and the SHA-256 of each weight file."""
    files = {file.name: sha256_of_file(file) for file in Checkpoint(model.folder).files}
    return {"id": model.id, "revision": model.revision, "sha256": files}


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
