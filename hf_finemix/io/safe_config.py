"""config.json of a stranger: read with limits, and without what would load code or other files than its weights."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from ..repo_contents import ADAPTER_CONFIG_NAME
from .checkpoint import TensorInfo
from .folder import is_adapter
from .safe_json import check_inside, read_json

# What makes transformers ask for code or kernels, load other files than these, or find one of those keys under another
# name (attribute_map).
UNSAFE_KEYS = {"attn_implementation", "_attn_implementation", "attribute_map", "auto_map", "custom_pipelines"}
UNSAFE_KEYS |= {"transformers_weights"}
_MANY = 1000


def read_config(folder: Path, model: str) -> dict[str, Any]:
    """The content of a model's config.json, without its unsafe keys; an error where the weights are quantized."""
    path = folder / "config.json"
    if not path.is_file():
        raise FineMixingError(f"{model} has no config.json: give the whole folder that save_pretrained wrote.")
    check_inside(path, folder)
    content = read_json(path)
    if not isinstance(content, dict):
        raise FineMixingError(f"config.json of {model} is not a JSON object: give what save_pretrained wrote.")
    refuse_quantized(content, f"config.json of {model}")
    return without_unsafe_keys(content)


def without_unsafe_keys(content: Any) -> Any:
    """The same content without the keys that are unsafe, at any depth."""
    if isinstance(content, dict):
        return {key: without_unsafe_keys(value) for key, value in content.items() if key not in UNSAFE_KEYS}
    return [without_unsafe_keys(value) for value in content] if isinstance(content, list) else content


def copy_without_code(source: Path, target: Path) -> None:
    """Copy a small file of a model; a configuration in JSON without its unsafe keys, where it has any."""
    target.parent.mkdir(exist_ok=True)
    if source.name.endswith("_config.json"):
        content = read_json(source)
        if (safe := without_unsafe_keys(content)) != content:
            target.write_text(json.dumps(safe, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return
    shutil.copyfile(source, target)


def refuse_adapter(folder: Path, model: str | Path) -> None:
    """Raise a [`FineMixingError`] for an adapter where a whole model is needed, or for one beside whole weights."""
    if is_adapter(folder):
        raise FineMixingError(f"{model} is an adapter, and a whole model is needed: merge it into its base first.")
    if (folder / ADAPTER_CONFIG_NAME).is_file():  # transformers would load it as well
        raise FineMixingError(f"{model} is an adapter beside whole weights: take {ADAPTER_CONFIG_NAME} away.")


def refuse_quantized(content: Mapping[str, Any], where: Path | str) -> None:
    """Raise a [`FineMixingError`] for a configuration of packed weights, which cannot be mixed."""
    if content.get("quantization_config"):
        method = content["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else None
        raise FineMixingError(
            f"{where} says that the weights are quantized ({str(method or 'quantization_config')[:40]}), and packed "
            "integers cannot be mixed: give the model in float32, float16 or bfloat16."
        )


def check_sizes(content: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """
    Refuse a configuration of a model that its weights cannot be, with more layers than there are tensors or more
    classes than any of them has entries: to make it would take for ever.
    """
    check_counts(content, max(len(tensors), _MANY))
    longest = max((size for info in tensors.values() for size in info.shape), default=0)
    names = content.get("id2label")
    for name, count in (("num_labels", content.get("num_labels")), ("id2label", names and len(names))):
        if isinstance(count, (int, float)) and count > max(longest, 2):
            raise FineMixingError(f"config.json says {name} of {count}, and no tensor is as large: get another copy.")


def check_counts(value: Any, most: int, name: str = "") -> None:
    """Refuse what would make a model of more modules than anyone's: it would never be ready."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_counts(inner, most, str(key))
    elif isinstance(value, list):
        for inner in value:
            check_counts(inner, most, name)
    elif re.search(r"layer|depth|block|expert|stage", name) and isinstance(value, (int, float)) and value > most:
        raise FineMixingError(f"config.json says {name} = {value}, and no model has as many: get another copy.")


def read_model_config(content: Any, where: Path | str) -> tuple[str, dict[str, Any]]:
    """The class name in the content of a config.json, and the content; an error where it is quantized."""
    if not isinstance(content, dict):
        raise FineMixingError(f"{where} is not a JSON object: give the folder that save_pretrained wrote.")
    refuse_quantized(content, where)
    kind = content.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w.-]{1,100}", kind):
        raise FineMixingError(f"{where} names no model type (model_type): set it, as save_pretrained does.")
    names = content.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,99}", name):
        raise FineMixingError(f"{where} names no model class (architectures): set it, as save_pretrained does.")
    return name, content
