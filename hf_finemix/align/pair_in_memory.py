"""A model in memory beside its base on disk: what goes with what, and how far apart they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import FineMixingError
from ..hub.cache import cached_folder
from ..io.checkpoint import Checkpoint, TensorInfo, row_chunks
from ..io.safe_config import refuse_quantized
from ..io.safe_json import read_object
from .architectures import ties_of_base
from .drift import CHUNK_ELEMENTS, TensorDrift, check_related, measure_drift
from .loaded_layout import LoadedLayout
from .names import NamedTensors, body_within, named_tensors
from .pairing import Pairing
from .rules import align


@dataclass
class Pair:
    """A model beside its base: the tensors of both, what goes with what, and how far apart they are."""

    suspect: NamedTensors
    base: LoadedLayout
    pairing: Pairing
    drift: dict[str, TensorDrift]

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The model's dtypes on disk, by canonical name."""
        return {tensor.name: getattr(torch, tensor.info.dtype) for tensor in self.pairing.tensors}

    def check_related(self) -> None:
        """Raise an [`AlignmentError`] where the weight matrices of the two have nothing to do with each other."""
        check_related(self.drift, self.pairing.matrices(), self.pairing.untied())


@torch.no_grad()
def compare_with_base(
    model: nn.Module, base: Checkpoint, *, head: str = "keep", dtypes: Mapping[str, torch.dtype] | None = None
) -> Pair:
    """Align a model with its base and read both in full once; raises as [`mix_model`], but for unrelated weights."""
    suspect = named_tensors(model)
    _check_whole(model, suspect)
    layout = LoadedLayout(base, model)
    infos = {}
    for name, tensor in suspect.tensors.items():
        on_disk = [dtypes[n] for n in (name, *suspect.aliases[name]) if n in dtypes] if dtypes else []
        infos[name] = TensorInfo.of(tensor, _stored_dtype(tensor, on_disk[0] if on_disk else None))
    pairing = align(
        infos,
        layout.tensors,
        converted=layout.converted,
        buffers=suspect.buffers,
        embedding=suspect.embedding,
        aliases=suspect.aliases,
        base_ties=ties_of_base(read_object(base.folder, "config.json"), layout.tensors, suspect.tensors),
        head=head,
        sources=suspect.module_names,
        base_sources=layout.sources,
    )
    return Pair(suspect, layout, pairing, measure_drift(suspect.tensors, layout, pairing))


def _check_whole(model: nn.Module, suspect: NamedTensors) -> None:
    """Its weights must be there, and be numbers: what is offloaded or packed could not be changed in place."""
    config = getattr(body_within(model)[1], "config", None)
    if getattr(config, "quantization_config", None):
        refuse_quantized(config.to_dict(), "the model's config")
    if elsewhere := [name for name, tensor in suspect.tensors.items() if tensor.is_meta]:
        raise FineMixingError(
            f"{len(elsewhere)} of {len(suspect.tensors)} weights are offloaded or not loaded ({elsewhere[0]}, …), and "
            "cannot be mixed there: mix from disk to disk (hf-finemix mix) and load the mix, or load the model whole."
        )


def _stored_dtype(tensor: torch.Tensor, on_disk: torch.dtype | None) -> torch.dtype:
    """The dtype on disk where the tensor holds nothing else; its own where it was changed since it was loaded."""
    if on_disk in (torch.float8_e4m3fn, torch.float8_e5m2):
        return on_disk  # which alignment refuses by name
    if on_disk in (None, tensor.dtype) or torch.promote_types(on_disk, tensor.dtype) != tensor.dtype:
        return tensor.dtype
    values = torch.atleast_1d(tensor.data)
    for first, last, _ in row_chunks(tuple(values.shape), CHUNK_ELEMENTS):
        rows = values[first:last]
        if not torch.equal(rows.to(on_disk).to(rows.dtype).nan_to_num(), rows.nan_to_num()):
            return tensor.dtype
    return on_disk


def dtypes_on_disk(model: nn.Module) -> dict[str, torch.dtype] | None:
    """The dtypes of the checkpoint that the model was loaded from, where it is still at hand; else `None`."""
    source = getattr(model, "name_or_path", None)
    folder = cached_folder(source) if source else None
    if folder is None:
        return None
    try:
        tensors = LoadedLayout(Checkpoint(folder), model).tensors
    except FineMixingError:  # a model without readable safetensors is mixed in the dtype it has in memory
        return None
    return {name: getattr(torch, info.dtype) for name, info in tensors.items()}
