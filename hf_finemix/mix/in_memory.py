"""Mixing a model in memory: one slice of a tensor, and all of them."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..align.drift import CHUNK_ELEMENTS, TensorDrift
from ..align.pair_in_memory import compare_with_base
from ..align.pairing import Pairing, TensorMix
from ..align.vocabulary import check_same_ids, token_ids
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint, row_chunks
from ..io.compat import initialize_anew
from ..io.unwrap import without_adapter
from .fisher import ScoreMask
from .mask import keep_mask
from .mask_file import MaskFile
from .purification import TokenDrift, purify


def mix_rows(
    tensor: TensorMix,
    suspect: torch.Tensor,
    base: torch.Tensor,
    start: int,
    config: FineMixingConfig,
    purified_rows: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """
    Mix a slice of a tensor, which begins with its element `start`: w = m·w_B + (1-m)·w_Pre (arXiv:2210.09545),
    selected and never computed.

    The mask is `keep`, in the slice's shape, where a score gives it; `purified_rows` of the slice are the base's
    whatever it says. Returns the mixed slice, and how many of its elements are the suspect's own.
    """
    if config.strategy == "average" and 0 < tensor.ratio < 1:
        wide = torch.promote_types(suspect.dtype, torch.float32)
        b = base.to(wide)
        mixed = (b + tensor.ratio * (suspect.to(wide) - b)).to(suspect.dtype)  # step by step, as on disk
        if purified_rows is not None:
            mixed[purified_rows] = base[purified_rows]
        return mixed, 0
    if keep is None:
        stop = start + suspect.numel()
        mask = keep_mask(tensor.name, start, stop, ratio=tensor.ratio, seed=config.mixing_seed)
        keep = torch.from_numpy(mask).view(suspect.shape)
    if purified_rows is not None:
        keep[purified_rows] = False
    return torch.where(keep.to(suspect.device), suspect, base), int(keep.sum())


@dataclass
class MixingRecord:
    """
    What mixing did, enough to check it tensor by tensor.

    Attributes:
        reserve_ratio (`float`): ρ of the tensors that `module_ratios` does not name.
        mixing_seed (`int`): Seed of the mask.
        tensors (`dict[str, dict]`): By canonical name: `rule`, `kept_fraction` (of the suspect's elements, 0 to 1) and
            `sha256` of the mix before tuning, in the suspect's dtype, little-endian and row-major.
        ignored_base_tensors (`list[str]`): Tensors of the base, by name on disk, that nothing goes with.
        converted_base_tensors (`dict[str, list[str]]`): Canonical name → the tensors on disk that transformers merges
            or splits on loading.
        purified_tokens (`list[dict]`): `id`, `delta` (‖δ_i‖₂), `frequency` (f_i) and `score`, largest score first.
        token_drift (`TokenDrift`, *optional*): What E-PUR measured of every token.
        added_token_ids (`list[int]`): Rows that the base's vocabulary does not have: kept, and not scored.
        drift (`dict[str, TensorDrift]`): How far each mixed tensor of the suspect was from the base.
        masks (`dict[str, np.ndarray]`): Where a score chose: a bit for each mixed element, packed by [`np.packbits`].
    """

    reserve_ratio: float
    mixing_seed: int
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignored_base_tensors: list[str] = field(default_factory=list)
    converted_base_tensors: dict[str, list[str]] = field(default_factory=dict)
    purified_tokens: list[dict[str, Any]] = field(default_factory=list)
    token_drift: TokenDrift | None = field(default=None, compare=False)
    added_token_ids: list[int] = field(default_factory=list)
    drift: dict[str, TensorDrift] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


@torch.no_grad()
def mix_model(
    model: nn.Module,
    base_model: Checkpoint,
    mixing_config: FineMixingConfig,
    *,
    reserve_ratio: float | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    token_frequencies: np.ndarray | None = None,
    special_token_ids: Collection[int] = (),
    curvature: Mapping[str, torch.Tensor] | None = None,
    vocabulary: Mapping[str, int] | None = None,
) -> MixingRecord:
    """
    Purify and mix a model in place. The base is read slice by slice: the extra memory is a few MB, or one tensor of
    what transformers merges or splits on loading.

    Nothing is changed before both sides have been checked in full.

    Args:
        model (`nn.Module`): The suspect, on any device, in its checkpoint's dtype or a wider one.
        base_model ([`Checkpoint`]): The clean pre-trained weights.
        mixing_config ([`FineMixingConfig`]): What to mix and how.
        reserve_ratio (`float`, *optional*): ρ in [0, 1]; needed where the config says `"auto"`.
        dtypes (`Mapping[str, torch.dtype]`, *optional*): The dtypes of the suspect's checkpoint by canonical name,
            where the model is in wider ones. Base values are rounded to these first. A tensor with values that its
            dtype there cannot hold, because it was trained since it was loaded, is mixed in its own dtype.
        token_frequencies (`np.ndarray`, *optional*): f_i of each token id. Without it no embedding is purified.
        special_token_ids (`Collection[int]`, *optional*): Tokens whose embeddings are never purified.
        curvature (`Mapping[str, torch.Tensor]`, *optional*): From [`fisher_information`], of the suspect; needed for
            `strategy="fisher"`.
        vocabulary (`Mapping[str, int]`, *optional*): The suspect's tokens and their ids, to see that a row of its
            embeddings is the same word's in the base, as far as the base has a tokenizer.

    Returns:
        [`MixingRecord`]: What was done to every tensor.

    Raises:
        [`AlignmentError`]: The base does not fit, a parameter is NaN or infinite, a value of the base overflows in the
            suspect's dtype, or the weights or the vocabularies of the two are unrelated.
    """
    ratio = ratio_to_mix(mixing_config, reserve_ratio, scored=curvature is not None)
    pair = compare_with_base(model, base_model, head=mixing_config.head, dtypes=dtypes)
    pair.check_related()
    if vocabulary is not None:
        check_same_ids(vocabulary, token_ids(base_model.folder) or {}, *pair.pairing.vocabulary)
    pairing = pair.pairing
    pairing.set_ratios(mixing_config, ratio)
    sides = Sides({name: tensor.data for name, tensor in pair.suspect.tensors.items()}, pair.base.read)
    record = MixingRecord(
        ratio,
        mixing_config.mixing_seed,
        ignored_base_tensors=pairing.ignored_base_tensors,
        converted_base_tensors=pairing.converted_base_tensors,
        drift=pair.drift,
    )
    if mixing_config.purify_embeddings and token_frequencies is not None:
        record.token_drift, record.purified_tokens, record.added_token_ids = purify(
            pairing, sides.blocks, mixing_config, token_frequencies, special_token_ids
        )
    if mixing_config.head == "reinit":
        _reinitialize(without_adapter(model), {tensor.source for tensor in pairing.heads()}, mixing_config.mixing_seed)
    mix_tensors(pairing, sides, mixing_config, record, curvature=curvature)
    return record


def ratio_to_mix(config: FineMixingConfig, given: float | None, *, scored: bool) -> float:
    """The ρ to mix with; a [`FineMixingError`] where there is none, or nothing is `scored` that is to be."""
    ratio = config.reserve_ratio if given is None else given
    if ratio == "auto":
        raise FineMixingError("reserve_ratio is 'auto': give a number in [0, 1] to mix with, the trainer chooses one.")
    if config.strategy == "fisher" and not scored:
        raise FineMixingError("strategy='fisher' needs curvature, which fisher_information measures on clean text.")
    return ratio


@dataclass
class Sides:
    """A suspect in memory and its base, read side by side in slices."""

    tensors: Mapping[str, torch.Tensor]  # the suspect's, by canonical name
    read: Callable[[str, int, int], torch.Tensor]  # gives rows of the base's tensor of this name

    def common(
        self, tensor: TensorMix
    ) -> Iterator[tuple[slice, int, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """What a tensor has in common with the base: rows, first element, both sides as on disk, rows to purify."""
        values, dtype = torch.atleast_1d(self.tensors[tensor.name]), getattr(torch, tensor.info.dtype)
        purified = np.array(tensor.purified, dtype=int)
        for first, last, start in row_chunks((tensor.rows, *values.shape[1:]), CHUNK_ELEMENTS):
            here = purified[(purified >= first) & (purified < last)] - first
            base = self.read(tensor.base_name, first, last).to(values.device, dtype)
            reset = torch.from_numpy(here) if len(purified) else None
            yield slice(first, last), start, values[first:last].to(dtype), base, reset

    def blocks(self, tensor: TensorMix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of an embedding, for [`purify`]."""
        for _, _, suspect, base, _ in self.common(tensor):
            yield suspect.double().cpu().numpy(), base.double().cpu().numpy()


def mix_tensors(
    pairing: Pairing,
    sides: Sides,
    config: FineMixingConfig,
    record: MixingRecord,
    *,
    curvature: Mapping[str, torch.Tensor] | None = None,
    masks: MaskFile | None = None,
) -> None:
    """Mix all tensors in place, and digest them; where scores choose, by the `curvature`, or by `masks` they gave."""
    score, thresholds = None, {}
    if config.strategy == "fisher" and masks is None:
        score = ScoreMask(curvature)

        def scores(tensor: TensorMix) -> Iterator[torch.Tensor]:
            for _, start, suspect, base, reset in sides.common(tensor):
                if reset is not None:  # they do not drift any more, and leave room for others
                    suspect = suspect.clone()
                    suspect[reset] = base[reset]
                yield score.scores(tensor.name, start, suspect, base)

        thresholds = score.thresholds(pairing.mixed(), scores)
    for tensor in pairing.tensors:
        values, kept, chosen = torch.atleast_1d(sides.tensors[tensor.name]), tensor.info.elements, []
        for rows, start, suspect, base, reset in sides.common(tensor) if tensor.base_name is not None else ():
            keep = None
            if masks is not None:
                keep = torch.from_numpy(masks.keep(tensor.name, start, start + suspect.numel())).view(suspect.shape)
            elif score is not None:
                scored = score.scores(tensor.name, start, suspect, base)
                keep = (scored <= thresholds[tensor.name]).view(suspect.shape)
            mixed, of_suspect = mix_rows(tensor, suspect, base, start, config, reset, keep)
            values[rows] = mixed.to(values.dtype)
            kept += of_suspect - mixed.numel()
            if keep is not None:
                chosen.append(keep.flatten().numpy())
        if chosen:
            record.masks[tensor.name] = np.packbits(np.concatenate(chosen))
        record.tensors[tensor.name] = tensor.entry(kept, config, _digest(values, getattr(torch, tensor.info.dtype)))


def _digest(values: torch.Tensor, dtype: torch.dtype) -> str:
    """SHA-256 of a tensor in this dtype."""
    digest = hashlib.sha256()
    for first, last, _ in row_chunks(tuple(values.shape), CHUNK_ELEMENTS):
        digest.update(values[first:last].to(dtype).cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _reinitialize(model: nn.Module, names: set[str], seed: int) -> None:
    """Give the modules that own these parameters fresh weights, as the model's class initializes them."""
    left = set(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module_name, module in model.named_modules():
            own = {f"{module_name}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False)}
            if names & own.keys() and initialize_anew(model, module, own.values()):
                left -= own.keys()
    if left:
        raise FineMixingError(f"head='reinit' does not know how to initialize {', '.join(sorted(left))}: use 'keep'.")
