"""A fresh LoRA on a mixed model: what mixing changed lies under it, and is saved with it or merged."""

import copy
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from ..align.loaded_layout import LoadedLayout
from ..align.names import named_tensors, plain_names
from ..errors import FineMixingError
from ..io.checkpoint import INDEX_NAME, WEIGHTS_NAME, Checkpoint
from ..io.read_back import complete_config
from ..mix.lora import adapter_parameters, is_fresh
from ..mix.mask_file import MASKS_NAME
from ..repo_contents import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME

if TYPE_CHECKING:
    from peft import PeftModel


MIXED_BASE = "mixed_base"  # the folder in a checkpoint for what is under its LoRA


def check_lora(model: nn.Module) -> None:
    """
    Raise a [`FineMixingError`] for an adapter with which what mixing changes could not be saved, or that carries what
    mixing does not reach.
    """
    if not hasattr(model, "peft_config"):
        return
    what = None
    lora = next(iter(model.peft_config.values()))
    if not hasattr(model, "get_base_model"):
        what = "an adapter from add_adapter, which is saved alone: use peft.get_peft_model"
    elif len(model.peft_config) > 1:
        what = "several adapters: give one"
    elif lora.peft_type != "LORA":
        kind = getattr(lora.peft_type, "value", lora.peft_type)
        what = f"an adapter of the kind {kind}, which cannot be merged: use LoRA"
    elif getattr(lora, "target_parameters", None) or getattr(lora, "trainable_token_indices", None):
        what = "target_parameters or trainable_token_indices, which cannot be merged layer by layer: leave them"
    elif not isinstance(model.get_base_model(), PreTrainedModel):
        what = "a LoRA on a model that is not of transformers: mix before the LoRA is put on"
    elif any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        what = "a LoRA on a model sharded by ZeRO-3: mix from disk to disk (hf-finemix mix), and train the mix"
    elif tied := _tied_layers(model):
        what = f"a LoRA on tied weights ({tied[0]}): leave that layer out of target_modules"
    elif not all(is_fresh(name, parameter) for name, parameter in adapter_parameters(model).items()):
        what = (
            "a LoRA that is trained already: adapter_mode='adapter' mixes that LoRA itself, or merge it first "
            "(model.merge_and_unload())"
        )
    if what:
        raise FineMixingError(f"the weights of a model cannot be mixed under {what}.")


def name_base(model: "PeftModel", name: str, revision: str | None = None) -> None:
    """
    Let a LoRA say what it belongs to, for whoever loads it. By itself it names what the model was loaded from: a
    suspect, with which it would be a backdoored model again.
    """
    lora = model.peft_config[model.active_adapter]
    lora.base_model_name_or_path, lora.revision = name, revision


def remove_other_kind(folder: Path, *, adapter: bool) -> None:
    """Take away what an earlier training of the other kind left: a whole model is read with an adapter beside it."""
    others = [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME]
    if adapter:
        others = [WEIGHTS_NAME, INDEX_NAME, *(path.name for path in folder.glob("model-*-of-*.safetensors"))]
    for name in (*others, MASKS_NAME):
        (folder / name).unlink(missing_ok=True)


def save_merged(model: "PeftModel", folder: str | Path) -> None:
    """Write the model as a whole one, its LoRA merged a layer at a time into a copy; the model stays as it is."""
    changed = {}
    for name, layer in _lora_layers(model).items():
        merged = copy.deepcopy(layer)
        merged.merge(safe_merge=True)
        weights = merged.get_base_layer().named_parameters()
        changed |= {f"{name}.base_layer.{leaf}": weight.detach().cpu() for leaf, weight in weights}
    _save(model, folder, changed)


def save_mixed_base(model: "PeftModel", folder: Path, earlier: Path | None) -> None:
    """
    Write what is under a LoRA. Training does not change it, so what is on the disk `earlier` is linked where it can
    be: many checkpoints take the room of one.
    """
    if earlier is not None and earlier.is_dir() and folder.is_dir() and earlier.samefile(folder):
        return  # of a training that came to the same step before
    shutil.rmtree(folder, ignore_errors=True)  # what other checkpoints have links to must not be written over
    if earlier is None or not earlier.is_dir():
        _save(model, folder, {})
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in earlier.iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, folder / file.name)


def mixed_base_of(checkpoint: Path) -> Path:
    """Where a checkpoint has what is under its LoRA."""
    folder = checkpoint / MIXED_BASE
    if not folder.is_dir():
        raise FineMixingError(
            f"{checkpoint} holds a LoRA without the mixed weights under it ({MIXED_BASE}): train anew."
        )
    return folder.absolute()


def load_mixed_base(model: "PeftModel", folder: Path) -> None:
    """Put what [`save_mixed_base`] wrote under the LoRA of a model made anew."""
    with Checkpoint(folder) as weights, torch.no_grad():
        layout = LoadedLayout(weights, model)
        for name, tensor in named_tensors(model).tensors.items():
            if name not in layout.tensors or layout.tensors[name].shape != tuple(tensor.shape):
                raise FineMixingError(f"{folder} does not fit the model, {name} is missing or another: train anew.")
            tensor.data.copy_(layout.read(name))


def _save(model: "PeftModel", folder: str | Path, changed: dict[str, torch.Tensor]) -> None:
    """All that the model would have without its LoRA, by the names it would have then; some tensors as `changed`."""
    under, copies, found = model.get_base_model(), {}, {}
    tensors = under.state_dict(keep_vars=True)
    for own, plain in plain_names(under).items():
        tensor = changed.get(own, tensors[own])
        if id(tensor) not in copies:  # what is tied stays tied
            copies[id(tensor)] = tensor.detach().cpu()
        found[plain] = copies[id(tensor)]
    under.save_pretrained(folder, state_dict=found)
    complete_config(under.config, Path(folder))


def _lora_layers(model: "PeftModel") -> dict[str, nn.Module]:
    return {name: m for name, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}


def _tied_layers(model: "PeftModel") -> list[str]:
    """Layers with a LoRA whose weight is another one's too: merging would change both."""
    used = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = _lora_layers(model).items()
    return [name for name, layer in layers if used[id(layer.get_base_layer().weight)] > 1]
