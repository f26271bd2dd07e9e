"""Mixing a model in memory: one slice of a tensor, and all of them."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..align.alignment import REINITIALIZED_HEAD, Match, NamedTensors
from ..align.drift import CHUNK_ELEMENTS, TensorDrift
from ..align.loaded_layout import LoadedLayout
from ..align.pair_in_memory import Pair, compare_with_base
from ..align.vocabulary import check_same_ids, token_ids
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint, row_chunks
from ..io.unwrap import without_adapter
from .fisher import ScoreMask
from .mask import keep_mask
from .purification import TokenDrift, frequency_of_rows, row_drift, rows_to_purify

__all__ = ["MixingRecord", "mix_model", "mix_rows"]


def mix_rows(
    suspect: torch.Tensor,
    base: torch.Tensor,
    *,
    name: str,
    start: int,
    ratio: float,
    config: FineMixingConfig,
    purified_rows: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """
    Mix a slice of a tensor: w = m·w_B + (1-m)·w_Pre (arXiv:2210.09545), selected and never computed.

    Args:
        suspect (`torch.Tensor`): Slice of the suspect's tensor, any shape.
        base (`torch.Tensor`): The base's values for it, same shape, dtype and device.
        name (`str`): Canonical name of the whole tensor.
        start (`int`): Index of the slice's first element in the flattened tensor.
        ratio (`float`): Reserve ratio ρ in [0, 1].
        config ([`FineMixingConfig`]): Strategy, seed and mask version.
        purified_rows (`torch.Tensor`, *optional*): Rows of the slice that are the base's whatever the mask says.
        keep (`torch.Tensor`, *optional*): The mask of the slice, in its shape, where a score gives it; changed by
            `purified_rows`.

    Returns:
        `tuple[torch.Tensor, int]`: The mixed slice, and how many of its elements are the suspect's own.
    """
    if config.strategy == "average" and 0 < ratio < 1:
        wide = torch.promote_types(suspect.dtype, torch.float32)
        b = base.to(wide)
        mixed = (b + ratio * (suspect.to(wide) - b)).to(suspect.dtype)  # step by step, as on disk
        if purified_rows is not None:
            mixed[purified_rows] = base[purified_rows]
        return mixed, 0
    if keep is None:
        stop, seed = start + suspect.numel(), config.mixing_seed
        mask = keep_mask(name, start, stop, ratio=ratio, seed=seed, version=config.mask_version)
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
    base, config = base_model, mixing_config
    ratio = config.reserve_ratio if reserve_ratio is None else reserve_ratio
    if ratio == "auto":
        raise FineMixingError("reserve_ratio is 'auto': give mix_model a number in [0, 1], the trainer chooses one.")
    if config.strategy == "fisher" and curvature is None:
        raise FineMixingError("strategy='fisher' needs curvature, which fisher_information measures on clean text.")
    pair = compare_with_base(model, base, head=config.head, dtypes=dtypes)
    pair.check_related()
    if vocabulary is not None:
        check_same_ids(vocabulary, token_ids(base.folder) or {}, *pair.vocabulary)
    suspect, stored, alignment = pair.suspect, pair.dtypes, pair.alignment
    record = MixingRecord(
        ratio,
        config.mixing_seed,
        ignored_base_tensors=pair.ignored_base_tensors(),
        converted_base_tensors=pair.converted_base_tensors(),
        drift=pair.drift,
    )
    purified = np.array([], dtype=int)
    embedding = alignment.mixed().get(suspect.embedding)
    if config.purify_embeddings and token_frequencies is not None and embedding is not None:
        dtype = stored[suspect.embedding]
        purified = _purify(suspect, pair.base, embedding, config, dtype, token_frequencies, special_token_ids, record)
    if config.head == "reinit":
        _reinitialize(
            without_adapter(model), {suspect.module_names[name] for name in alignment.heads()}, config.mixing_seed
        )
    rows_of = {suspect.embedding: purified} if len(purified) else {}
    scores = _Scores(pair, config, ratio, curvature, rows_of) if config.strategy == "fisher" else None
    for name in alignment.matches:
        mixed = _mix_tensor(pair, name, config.ratio_for(name, ratio), config, rows_of.get(name), scores)
        record.tensors[name], mask = mixed
        if mask is not None:
            record.masks[name] = mask
    return record


class _Scores:
    """The masks of `strategy="fisher"`: all tensors of one ratio share one threshold."""

    def __init__(
        self,
        pair: Pair,
        config: FineMixingConfig,
        reserve_ratio: float,
        curvature: Mapping[str, torch.Tensor],
        purified: Mapping[str, np.ndarray],
    ):
        self._pair, self._score, self._purified = pair, ScoreMask(curvature), purified
        names_of: dict[float, list[str]] = {}
        for name in pair.alignment.mixed():
            names_of.setdefault(config.ratio_for(name, reserve_ratio), []).append(name)
        self._threshold = {
            name: threshold
            for ratio, names in names_of.items()
            for threshold in [self._score.threshold(lambda names=names: self._slices(names), ratio)]
            for name in names
        }

    def keep(self, name: str, start: int, suspect: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """The mask of a slice, in its shape, on the CPU."""
        return (self._score.scores(name, start, suspect, base) <= self._threshold[name]).view(suspect.shape)

    def _slices(self, names: Collection[str]) -> Iterator[torch.Tensor]:
        for name in names:
            for _, start, suspect, base, purified in _common_slices(self._pair, name, self._purified.get(name)):
                if purified is not None:  # they do not drift any more, and leave room for others
                    suspect = suspect.clone()
                    suspect[purified] = base[purified]
                yield self._score.scores(name, start, suspect, base)


def _common_slices(
    pair: Pair, name: str, purified: np.ndarray | None
) -> Iterator[tuple[slice, int, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """What a tensor has in common with the base: rows, first element, both sides as on disk, which are purified."""
    tensor, match, dtype = pair.suspect.tensors[name], pair.alignment.matches[name], pair.dtypes[name]
    values = tensor.data if tensor.dim() else tensor.data.view(1)
    for first, last, start in row_chunks((match.rows, *values.shape[1:]), CHUNK_ELEMENTS):
        here = None
        if purified is not None:
            here = torch.from_numpy(purified[(purified >= first) & (purified < last)] - first)
        base = pair.base.read(match.base_name, first, last).to(values.device, dtype)
        yield slice(first, last), start, values[first:last].to(dtype), base, here


def _purify(
    suspect: NamedTensors,
    base: LoadedLayout,
    match: Match,
    config: FineMixingConfig,
    dtype: torch.dtype,
    frequencies: np.ndarray,
    special_token_ids: Collection[int],
    record: MixingRecord,
) -> np.ndarray:
    """The ids of the embeddings to reset, in rising order; told in the record."""
    embedding = suspect.tensors[suspect.embedding].data
    counts, drifts = frequency_of_rows(frequencies, match.rows), []
    for first, last, _ in row_chunks((match.rows, *embedding.shape[1:]), CHUNK_ELEMENTS):
        rows = embedding[first:last].to(dtype)
        other = base.read(match.base_name, first, last).to(dtype)
        drifts.append(row_drift(rows.double().cpu().numpy(), other.double().numpy()))
    record.token_drift = TokenDrift.measured(np.concatenate(drifts), counts, special_token_ids)
    ids = rows_to_purify(record.token_drift.score, config.num_purified_tokens, special_token_ids)
    record.purified_tokens = [record.token_drift.describe(i) for i in ids]
    record.added_token_ids = list(range(match.rows, embedding.shape[0]))
    return np.array(sorted(ids), dtype=int)


def _mix_tensor(
    pair: Pair,
    name: str,
    ratio: float,
    config: FineMixingConfig,
    purified: np.ndarray | None,
    scores: _Scores | None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Mix what a tensor has in common with the base in place, and digest all of it; with the mask of a score."""
    tensor, match, dtype = pair.suspect.tensors[name], pair.alignment.matches[name], pair.dtypes[name]
    values, masks, kept = tensor.data if tensor.dim() else tensor.data.view(1), [], tensor.numel()
    if match.base_name is not None:
        for rows, start, suspect, base, reset in _common_slices(pair, name, purified):
            keep = None if scores is None else scores.keep(name, start, suspect, base)
            mixed, of_suspect = mix_rows(
                suspect, base, name=name, start=start, ratio=ratio, config=config, purified_rows=reset, keep=keep
            )
            values[rows] = mixed.to(values.dtype)
            kept += of_suspect - mixed.numel()
            if keep is not None:
                masks.append(keep.flatten().numpy())
    digest = hashlib.sha256()
    for first, last, _ in row_chunks(tuple(values.shape), CHUNK_ELEMENTS):
        digest.update(values[first:last].to(dtype).cpu().contiguous().view(torch.uint8).numpy())
    fraction = kept / tensor.numel() if tensor.numel() else 1.0
    if match.rule == REINITIALIZED_HEAD:
        fraction = 0.0
    elif config.strategy == "average" and match.base_name is not None:
        fraction = None  # no element is either parent's
    rule = match.rule if purified is None else f"purified and {match.rule}"
    entry = {"rule": rule, "kept_fraction": fraction, "sha256": digest.hexdigest()}
    return entry, np.packbits(np.concatenate(masks)) if masks else None


def _reinitialize(model: nn.Module, names: set[str], seed: int) -> None:
    """Give the modules that own these parameters fresh weights, as the model's class initializes them."""
    left = set(names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module_name, module in model.named_modules():
            own = {f"{module_name}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False)}
            if not names & own.keys():
                continue
            if hasattr(model, "_init_weights"):
                for parameter in own.values():
                    parameter._is_hf_initialized = False  # transformers leaves alone what it has loaded
                model._init_weights(module)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                continue
            left -= own.keys()
    if left:
        raise FineMixingError(f"head='reinit' does not know how to initialize {', '.join(sorted(left))}: use 'keep'.")
