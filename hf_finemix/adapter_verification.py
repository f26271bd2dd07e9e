"""Does a mixed adapter follow from its config, its suspect and its base?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import FineMixingConfig
from .errors import FineMixingError
from .io.adapter_on_base import load_adapter
from .io.adapters import PREFIX
from .io.checkpoint import Checkpoint
from .io.folder import LocalModel, weights_in
from .mix.lora import adapter_parameters, mix_adapter
from .mix.mask_file import MaskFile

if TYPE_CHECKING:
    from .report.check_result import Verification


def verify_adapter(
    suspect: LocalModel,
    base: LocalModel,
    published: Path,
    config: FineMixingConfig,
    stated: dict[str, Any],
    found: "Verification",
) -> None:
    """
    Mix the suspect's adapter again and compare: each element of a mix, the digests of what was tuned after it.

    Args:
        suspect, base ([`LocalModel`]): The adapter, and what it belongs to.
        published (`Path`): The folder to check.
        config ([`FineMixingConfig`]): Its own.
        stated (`dict`): By name the `sha256` of each tensor of the mix, as in a report.
        found ([`Verification`]): Gets what was found.
    """
    model, _ = load_adapter(suspect, base, to_stay=True)
    before = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}
    masks = None
    if config.strategy == "fisher":
        masks = MaskFile(published)
        found.not_checked.append("why its masks keep what they keep: by gradients on the clean data")
    with Checkpoint(base.folder) as weights:
        record = mix_adapter(model, weights, config, masks=masks)
    there = _read(published)
    names = sorted(there.keys() ^ before.keys())
    found.problems += [f"{name} is not in both, the suspect and this adapter" for name in names[:3]]
    found.tensors, found.elements = len(before), sum(tensor.numel() for tensor in before.values())
    to_mix = to_suspect = apart = 0.0
    for name, parameter in adapter_parameters(model).items():
        mix, here = parameter.detach(), there.get(name)
        if here is None or here.shape != mix.shape:
            continue
        if found.kind == "mixed":
            if count := int((here.float() != mix.to(here.dtype).float()).sum()):
                found.wrong[name] = count
        elif not isinstance(entry := stated.get(name), dict) or entry.get("sha256") != record.tensors[name]["sha256"]:
            found.wrong[name] = None
        to_mix += float((here.double() - mix.double()).square().sum())
        to_suspect += float((here.double() - before[name].double()).square().sum())
        apart += float((mix.double() - before[name].double()).square().sum())
    if apart and not to_mix < to_suspect:
        found.problems.append("its weights are no nearer to the mix than to the suspect")


def _read(folder: Path) -> dict[str, torch.Tensor]:
    with weights_in(folder) as weights:
        if foreign := [name for name in weights.tensors if not name.startswith(PREFIX)]:
            raise FineMixingError(f"{folder} has a weight {foreign[0][:100]!r}, which is none of an adapter.")
        return {name.removeprefix(PREFIX): weights.read(name) for name in weights.tensors}
