"""Mixing a LoRA that stays a LoRA: each of its weights is the suspect's, or what it was before any training."""

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..align.architectures import ties_of_base
from ..align.drift import TensorDrift
from ..align.loaded_layout import LoadedLayout
from ..align.pair_in_memory import compare_with_base
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint
from ..io.safe_json import read_object
from .fisher import ScoreMask
from .in_memory import MixingRecord, mix_rows
from .mask_file import MaskFile

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["adapter_parameters", "check_mixable", "is_fresh", "mix_adapter", "rule_of"]

MIXED = "mixed: the base is what it was before any training"
KEPT_DIRECTION = "kept: counts only through the other matrix of its pair"
KEPT_HEAD = "kept: not in the base (head)"
# An untrained LoRA has zeros in these: lora_B of a layer, lora_embedding_A of an embedding.
_ZERO_AT_FIRST = re.compile(r"\.(lora_B(\.weight|\.bias)|lora_embedding_A)$")
_DIRECTION = re.compile(r"\.(lora_A(\.weight|\.bias)|lora_embedding_B)$")
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector$")


def adapter_parameters(model: "PeftModel") -> dict[str, nn.Parameter]:
    """The parameters of the active adapter, and of what is saved beside it, by their names in its file."""
    if not hasattr(model, "peft_config"):
        raise FineMixingError("adapter_mode='adapter' needs a model with a LoRA: give one, or adapter_mode='merge'.")
    active, found = re.escape(model.active_adapter), {}
    for name, parameter in model.named_parameters():
        if re.search(rf"\.(lora_\w+|modules_to_save)\.{active}(\.|$)", name):
            plain = re.sub(rf"\.{active}(?=\.|$)", "", name.removeprefix("base_model.model."), count=1)
            plain = plain.replace(".modules_to_save.", ".").replace(
                "lora_magnitude_vector.weight", "lora_magnitude_vector"
            )
            found[plain] = parameter
    return found


def is_fresh(name: str, parameter: torch.Tensor) -> bool:
    """Whether a weight of an adapter, by its name in the file, is as a LoRA has it before any training."""
    return not _ZERO_AT_FIRST.search(name) or not parameter.any()


def rule_of(name: str, base_names: Collection[str]) -> str:
    """
    What becomes of a tensor of an adapter.

    Args:
        name (`str`): As in its file, without `base_model.model.`.
        base_names (`Collection[str]`): Names of the base's tensors, with the model's prefix or without; and of what is
            tied to them.
    """
    if _DIRECTION.search(name):
        return KEPT_DIRECTION
    is_lora = _ZERO_AT_FIRST.search(name) or _MAGNITUDE.search(name)
    in_base = name in base_names or name.partition(".")[2] in base_names
    return MIXED if is_lora or in_base else KEPT_HEAD


@torch.no_grad()
def mix_adapter(
    model: "PeftModel",
    base: Checkpoint,
    config: FineMixingConfig,
    *,
    reserve_ratio: float | None = None,
    curvature: Mapping[str, torch.Tensor] | None = None,
    masks: MaskFile | None = None,
) -> MixingRecord:
    """
    Mix the adapter of a model in place. What it is mixed with is itself before any training, which is the base: zeros
    in `lora_B`, the base's norms in DoRA's magnitudes, the base's weights in modules that are saved whole.

    `lora_A` is kept, for what is taken out of `lora_B` is out of the product too: masking both would keep only ρ² of
    it. ρ = 1 leaves the suspect as it is, ρ = 0 the base with the suspect's head; every element is one or the other's
    (with `strategy="average"` lora_B is scaled by ρ). The rank stays. Embeddings are not purified.

    Args:
        model (`PeftModel`): The base with the suspect's adapter on it, in float32.
        base ([`Checkpoint`]): The clean pre-trained weights, for the names that are in them.
        config ([`FineMixingConfig`]): What to mix and how.
        reserve_ratio (`float`, *optional*): ρ in [0, 1]; needed where the config says `"auto"`.
        curvature (`Mapping[str, torch.Tensor]`, *optional*): Of the [`adapter_parameters`], for `strategy="fisher"`.
        masks ([`MaskFile`], *optional*): In place of the curvature: what a mix with it kept.

    Returns:
        [`MixingRecord`]: Its digests are of the values in float32.

    Raises:
        [`FineMixingError`]: A variant that cannot be mixed in this way; the message names it.
    """
    ratio = config.reserve_ratio if reserve_ratio is None else reserve_ratio
    if ratio == "auto":
        raise FineMixingError("reserve_ratio is 'auto': give mix_adapter a number in [0, 1], the trainer chooses one.")
    if config.strategy == "fisher" and curvature is None and masks is None:
        raise FineMixingError("strategy='fisher' needs curvature, which fisher_information measures on clean text.")
    parameters = adapter_parameters(model)
    check_mixable(model, config)
    _check_under(model, base)
    base_names = LoadedLayout(base, model.get_base_model()).tensors.keys()
    base_names |= ties_of_base(read_object(base.folder, "config.json"), base_names, parameters).keys()
    untrained = {
        name: _untrained(model, name, tensor.data)
        for name, tensor in parameters.items()
        if rule_of(name, base_names) == MIXED
    }
    record = MixingRecord(ratio, config.mixing_seed)
    ratios = {name: config.ratio_for(name, ratio) for name in untrained}
    thresholds = _thresholds(parameters, untrained, ratios, curvature) if curvature is not None else {}
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise FineMixingError(f"the adapter has values in {name} that are not finite: get it again.")
        values, kept = parameter.data, parameter.numel()
        if name in untrained:
            record.drift[name] = _drift(values, untrained[name])
            keep = None
            if masks is not None:
                keep = torch.from_numpy(masks.keep(name, 0, values.numel())).view(values.shape)
            elif curvature is not None and config.strategy == "fisher":
                scores = ScoreMask(curvature).scores(name, 0, values, untrained[name])
                keep = (scores <= thresholds[name]).view(values.shape)
            if keep is not None:
                record.masks[name] = np.packbits(keep.flatten().numpy())
            mixed, kept = mix_rows(
                values, untrained[name], name=name, start=0, ratio=ratios[name], config=config, keep=keep
            )
            values.copy_(mixed)
        record.tensors[name] = {
            "rule": rule_of(name, base_names),
            "kept_fraction": None if config.strategy == "average" and name in untrained else kept / values.numel(),
            "sha256": hashlib.sha256(values.float().cpu().contiguous().numpy().tobytes()).hexdigest(),
        }
    return record


def _check_under(model: "PeftModel", base: Checkpoint) -> None:
    """What is under the adapter must be the base, for it is left as it is: a suspect's weights would stay there."""
    pair = compare_with_base(model, base)
    saved_whole = {name for name, own in pair.suspect.module_names.items() if ".modules_to_save." in own}
    if other := sorted(name for name, drift in pair.drift.items() if drift.delta and name not in saved_whole):
        raise FineMixingError(
            f"adapter_mode='adapter' mixes the LoRA alone, and {len(other)} weights under it are not the base's "
            f"({other[0]}, …): load the LoRA on that base, or use adapter_mode='merge' for a fresh LoRA on a suspect."
        )


def check_mixable(model: "PeftModel", config: FineMixingConfig) -> None:
    """Raise a [`FineMixingError`] for a variant that cannot be mixed in this way."""
    lora = model.peft_config[model.active_adapter]
    what = None
    if lora.peft_type != "LORA":
        what = f"an adapter of the kind {getattr(lora.peft_type, 'value', lora.peft_type)}"
    elif lora.bias != "none":
        what = f"bias = {lora.bias!r}, which changes the base's own biases"
    elif config.head == "reinit":
        what = "head='reinit'"
    if what:
        raise FineMixingError(f"adapter_mode='adapter' cannot be done with {what}: use adapter_mode='merge'.")


def _untrained(model: "PeftModel", name: str, values: torch.Tensor) -> torch.Tensor:
    """What a tensor of the adapter held before any training, so that the model was the base."""
    if _ZERO_AT_FIRST.search(name):
        return torch.zeros_like(values)
    under = model.get_base_model()
    if found := _MAGNITUDE.search(name):
        layer = under.get_submodule(name[: found.start()])
        weight = layer.get_base_layer().weight
        if weight.dim() != 2 or isinstance(layer.get_base_layer(), nn.Embedding):
            raise FineMixingError(f"adapter_mode='adapter' cannot be done with DoRA on {name}: use 'merge'.")
        return (
            torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1).to(values.dtype).view(values.shape)
        )
    module, _, leaf = name.rpartition(".")
    while module and not hasattr(under.get_submodule(module), "original_module"):  # a part of what is saved whole
        module, _, part = module.rpartition(".")
        leaf = f"{part}.{leaf}"
    return under.get_submodule(module).original_module.get_parameter(leaf).data.clone()


def _thresholds(
    parameters: Mapping[str, nn.Parameter],
    untrained: Mapping[str, torch.Tensor],
    ratios: Mapping[str, float],
    curvature: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    """Up to which score a tensor's elements are kept: one threshold for all tensors of a ratio."""
    score, found = ScoreMask(curvature), {}
    for ratio in set(ratios.values()):
        names = [name for name in untrained if ratios[name] == ratio]
        threshold = score.threshold(
            lambda names=names: (score.scores(n, 0, parameters[n].data, untrained[n]) for n in names), ratio
        )
        found |= dict.fromkeys(names, threshold)
    return found


def _drift(suspect: torch.Tensor, base: torch.Tensor) -> TensorDrift:
    s, b = suspect.double().flatten(), base.double().flatten()
    return TensorDrift(*(float(value) for value in ((s - b).dot(s - b), s.dot(s), b.dot(b), s.dot(b))))
