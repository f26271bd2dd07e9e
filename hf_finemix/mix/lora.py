"""Mixing a LoRA that stays a LoRA: each of its weights is the suspect's, or what it was before any training."""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..align.architectures import ties_of_base
from ..align.drift import TensorDrift
from ..align.loaded_layout import LoadedLayout
from ..align.pair_in_memory import compare_with_base
from ..align.pairing import KEPT_DIRECTION, KEPT_HEAD, MIXED_IN_ADAPTER, Pairing, TensorMix
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.safe_json import read_object
from .in_memory import MixingRecord, Sides, mix_tensors, ratio_to_mix
from .mask_file import MaskFile

if TYPE_CHECKING:
    from peft import PeftModel

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
            plain = plain.replace(".modules_to_save.", ".")
            found[plain.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = parameter
    return found


def is_fresh(name: str, parameter: torch.Tensor) -> bool:
    """Whether a weight of an adapter, by its name in the file, is as a LoRA has it before any training."""
    return not _ZERO_AT_FIRST.search(name) or not parameter.any()


def pair_adapter(tensors: Mapping[str, TensorInfo], base_names: Collection[str]) -> Pairing:
    """
    What becomes of each tensor of an adapter, by its name in the file without `base_model.model.`.

    The base's names are with the model's prefix or without, and have what is tied to its tensors among them.
    """
    return Pairing([_mix_of(name, info, base_names) for name, info in tensors.items()])


def _mix_of(name: str, info: TensorInfo, base_names: Collection[str]) -> TensorMix:
    if _DIRECTION.search(name):
        return TensorMix(name, info, KEPT_DIRECTION)
    is_lora = _ZERO_AT_FIRST.search(name) or _MAGNITUDE.search(name)
    if is_lora or name in base_names or name.partition(".")[2] in base_names:
        return TensorMix(name, info, MIXED_IN_ADAPTER, base_name=name, rows=info.shape[0] if info.shape else 1)
    return TensorMix(name, info, KEPT_HEAD)


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
        model: The base with the suspect's adapter on it, in float32.
        base: The clean pre-trained weights, for the names that are in them.
        reserve_ratio: ρ in [0, 1]; needed where the config says `"auto"`.
        curvature: Of the [`adapter_parameters`], for `strategy="fisher"`.
        masks: In place of the curvature: what a mix with it kept.

    Returns:
        [`MixingRecord`]: Its digests are of the values in float32, or in the wider dtype that they have.
    """
    ratio = ratio_to_mix(config, reserve_ratio, scored=curvature is not None or masks is not None)
    parameters = adapter_parameters(model)
    check_mixable(model, config)
    _check_under(model, base)
    base_names = LoadedLayout(base, model.get_base_model()).tensors.keys()
    base_names |= ties_of_base(read_object(base.folder, "config.json"), base_names, parameters).keys()
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise FineMixingError(f"the adapter has values in {name} that are not finite: get it again.")
    values = {name: parameter.data for name, parameter in parameters.items()}
    infos = {name: TensorInfo.of(v, torch.promote_types(v.dtype, torch.float32)) for name, v in values.items()}
    pairing = pair_adapter(infos, base_names)
    pairing.set_ratios(config, ratio)
    untrained = {t.name: _untrained(model, t.name, values[t.name]) for t in pairing.mixed()}
    record = MixingRecord(ratio, config.mixing_seed)
    for name, base_values in untrained.items():
        record.drift[name] = TensorDrift.between(*(v.double().flatten() for v in (values[name], base_values)))
    sides = Sides(values, lambda name, first, last: torch.atleast_1d(untrained[name])[first:last])
    mix_tensors(pairing, sides, config, record, curvature=curvature, masks=masks)
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
    lora, what = model.peft_config[model.active_adapter], None
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
        norms = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1)
        return norms.to(values.dtype).view(values.shape)
    module, _, leaf = name.rpartition(".")
    while module and not hasattr(under.get_submodule(module), "original_module"):  # a part of what is saved whole
        module, _, part = module.rpartition(".")
        leaf = f"{part}.{leaf}"
    return under.get_submodule(module).original_module.get_parameter(leaf).data.clone()
