"""`hf-finemix env`."""

import os
import platform
import shutil
import sys
from importlib.metadata import version

from ..repo_contents import size_text
from .parsing import CommandParser, print_json

LIBRARIES = ("hf_finemix", "torch", "transformers", "accelerate", "peft", "datasets", "huggingface_hub", "safetensors")


def main(argv: list[str]) -> int:
    """Print what a report of a problem should say of the machine: no path, no name and no token is in it."""
    (rest,) = CommandParser("env", None, ()).parse(argv)
    found = {name: version(name) for name in LIBRARIES}
    found |= {"python": platform.python_version(), "platform": platform.platform()}
    found |= {"cores": str(os.cpu_count()), "memory": _memory(), "accelerator": _accelerator()}
    if rest.json:
        print_json(found)
    else:
        print("\n".join(f"- {name}: {value}" for name, value in found.items()))
    return 0


def _memory() -> str:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # Windows
        return "not known"
    return size_text(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _accelerator() -> str:
    """What torch would run on; it takes seconds to import, and is not asked where there is no driver's tool."""
    if sys.platform != "darwin" and not any(map(shutil.which, ("nvidia-smi", "rocm-smi", "xpu-smi"))):
        return "none"
    import torch

    if not torch.accelerator.is_available():
        return "none that torch can use"
    kind = torch.accelerator.current_accelerator().type
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    return f"{torch.accelerator.device_count()} × {name}"
