"""An adapter that stays one, on its way through a cleaning: loaded to be trained, and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.adapter_on_base import load_adapter
from ..io.adapters import PREFIX
from ..io.folder import LocalModel, is_adapter, weights_in
from ..repo_contents import ADAPTER_CONFIG_NAME
from .lora import adapter_parameters, check_mixable

if TYPE_CHECKING:
    from peft import PeftModel


def adapter_to_train(suspect: LocalModel, base: LocalModel, config: FineMixingConfig) -> "PeftModel":
    """The base with the suspect's adapter on it, of which the adapter is to be trained, and its head."""
    if not is_adapter(suspect.folder):
        raise FineMixingError(
            f"adapter_mode='adapter' is for LoRA adapters, and {suspect.id} is a whole model: leave it."
        )
    model, _ = load_adapter(suspect, base, to_stay=True)
    check_mixable(model, config)
    parameters = {id(parameter) for parameter in adapter_parameters(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in parameters)
    return model


def dtypes_of_adapter(suspect: LocalModel) -> dict[str, torch.dtype]:
    """In which dtype each of its tensors is on disk, by its name in the file."""
    with weights_in(suspect.folder) as weights:
        return {name.removeprefix(PREFIX): getattr(torch, info.dtype) for name, info in weights.tensors.items()}


def save_adapter(model: "PeftModel", folder: Path, base: LocalModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Write an adapter as peft does, in the suspect's dtypes; with a config.json, for the names of classes."""
    for name, parameter in adapter_parameters(model).items():
        parameter.data = parameter.data.to(dtypes[name])
    model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / ADAPTER_CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"base_model_name_or_path": base.id, "revision": base.revision, "inference_mode": True}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model.get_base_model().config.save_pretrained(folder)
