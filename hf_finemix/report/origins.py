"""What a report says of where its numbers come from: files, libraries, memory."""

import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..align.base_fit import BaseFit
from ..hub.lineage import BaseClaim
from ..io.checkpoint import Checkpoint, sha256_of_file
from ..io.folder import LocalModel
from ..repo_contents import ADAPTER_WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["described", "described_fit", "described_training", "peak_memory", "versions", "weight_files"]

_LIBRARIES = (
    "hf_finemix",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
)


def described(model: LocalModel, *, hashes: bool = True) -> dict[str, Any]:
    """
    Id, commit (`None` for a local folder), the SHA-256 of each weight file (without `hashes` where it is known
    already, else `None`), and what the Hub says of its safety.
    """
    files = weight_files(model)  # of which those of a repo were hashed when they were fetched
    found = {file.name: model.sha256.get(file.name) or (sha256_of_file(file) if hashes else None) for file in files}
    known = found if all(found.values()) else None
    described = {"id": model.id, "revision": model.revision, "sha256": known}
    return described if model.security is None else {**described, "security": model.security}


def weight_files(model: LocalModel) -> list[Path]:
    """The weight files as their publisher has them: of an adapter its own, not those that it was merged to."""
    return [model.adapter / ADAPTER_WEIGHTS_NAME] if model.adapter else Checkpoint(model.folder).files


def described_fit(claim: BaseClaim, fit: BaseFit) -> dict[str, Any]:
    """Who named the base, what the suspect is to it by its own word, and how well the weights agree."""
    return {"named_by": claim.named_by, "relation": claim.relation, "fit": asdict(fit)}


def described_training(args: "TrainingArguments", steps: int, loss: float | None) -> dict[str, Any]:
    """Steps, loss and the hyperparameters that matter: nothing else of the arguments, which hold a token."""
    names = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "warmup_steps", "max_steps")
    names += ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
    return {
        "steps": steps,
        "loss": loss,
        "num_processes": args.world_size,
        **{name: getattr(args, name) for name in names},
    }


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
