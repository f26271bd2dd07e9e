"""A checkpoint as transformers lays it out in a model's memory: renamed, and merged or split where it does so."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import AlignmentError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.compat import conversions_on_loading, renaming_on_loading
from .names import body_within, canonical_name, plain_names


@dataclass
class _Conversion:
    """Tensors on disk, with the pattern each matched, that a converter of transformers makes one or several of."""

    converter: Any
    first_target: str
    sources: list[tuple[str, str]] = field(default_factory=list)


class LoadedLayout:
    """
    The tensors of a checkpoint by the canonical names they have in a model, read when asked for.

    transformers renames what it loads (old checkpoints say `LayerNorm.gamma`), and merges or splits some of it: the
    experts of a Mixtral, a tensor each on disk, are one tensor of a layer in memory. Its own rules for the model's
    class are applied here, tensor by tensor, so that a base can be read in the layout that the suspect has in memory
    without loading it as a model. They move values and never compute any.

    The model may have a module around it; one that is not of transformers has no rules but its prefix.

    Raises:
        [`AlignmentError`]: Two tensors on disk that become one, or some that cannot be merged or split.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        self._checkpoint, (_, self._model) = checkpoint, body_within(model)
        self._prefix = getattr(self._model, "base_model_prefix", "")
        self._conversion_of: dict[str, _Conversion] = {}
        self._last: tuple[_Conversion, dict[str, torch.Tensor]] | None = None
        self.tensors: dict[str, TensorInfo] = {}  # by canonical name, as they are in memory
        self.sources: dict[str, list[str]] = {}  # canonical name → names on disk
        for name, source in self._renamed():
            if isinstance(source, str):
                self._add(name, checkpoint.tensors[source], [source])
                continue
            conversion = source
            # On the meta device, which has shapes and dtypes only.
            infos = {source: checkpoint.tensors[source] for _, source in conversion.sources}
            with torch.device("meta"):
                empty = {s: torch.empty(i.shape, dtype=getattr(torch, i.dtype)) for s, i in infos.items()}
            for target, tensor in self._convert(conversion, empty).items():
                self._add(target, TensorInfo.of(tensor), list(infos))
                self._conversion_of[target] = conversion
        self.converted = set(self._conversion_of)  # what is merged or split on loading

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """
        The tensor of this canonical name, or its rows `start` to `stop` along the first dimension, on the CPU.

        Of what is merged or split, one tensor as a whole is held in memory until another is read.
        """
        conversion = self._conversion_of.get(name)
        if conversion is None:
            return self._checkpoint.read(self.sources[name][0], start, stop)
        if self._last is None or self._last[0] is not conversion:
            self._last = None  # let go of the one before, and only then make the next
            tensors = {source: self._checkpoint.read(source) for _, source in conversion.sources}
            self._last = conversion, self._convert(conversion, tensors)
        return self._last[1][name][start:stop]

    def _add(self, name: str, info: TensorInfo, sources: list[str]) -> None:
        if name in self.tensors:
            raise AlignmentError(
                f"{self._checkpoint.folder} has {self.sources[name][0]} and {sources[0]}, both {name}."
            )
        self.tensors[name], self.sources[name] = info, sources

    def _renamed(self) -> list[tuple[str, str | _Conversion]]:
        """Canonical names (of several targets the first), each with its name on disk or with what is converted."""
        if not hasattr(self._model, "config"):
            return [(canonical_name(name, self._prefix), name) for name in self._checkpoint.tensors]
        renamings, converters = conversions_on_loading(self._model)
        converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        state = self._model.state_dict()
        known = {plain: state[name] for name, plain in plain_names(self._model).items() if name in state}
        found: list[tuple[str, str | _Conversion]] = []
        conversions: dict[str, _Conversion] = {}
        names = self._checkpoint.tensors
        for name, renamed, pattern in renaming_on_loading(names, renamings, converters, self._prefix, known):
            if renamed not in known and name in known:
                renamed, pattern = name, None
            if pattern is None or renamed not in known:  # what the model has no place for keeps its name
                found.append((canonical_name(renamed if pattern is None else name, self._prefix), name))
                continue
            if renamed not in conversions:
                conversions[renamed] = _Conversion(converter_of[pattern], renamed)
                found.append((canonical_name(renamed, self._prefix), conversions[renamed]))
            conversions[renamed].sources.append((pattern, name))
        return found

    def _convert(self, conversion: _Conversion, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = copy.deepcopy(conversion.converter)  # it collects tensors
        for pattern, source in conversion.sources:
            converter.add_tensor(conversion.first_target, source, pattern, tensors[source])
        try:
            made = converter.convert(conversion.first_target, model=self._model, config=self._model.config)
        except Exception as error:  # of whatever kind torch raises for shapes that do not fit
            reason = " ".join(str(error).split())[:200]
            raise AlignmentError(
                f"{conversion.sources[0][1]} and others of {self._checkpoint.folder} cannot be made into "
                f"{conversion.first_target} ({reason}): probably another architecture or an incomplete copy."
            ) from error
        tensors = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return {canonical_name(name, self._prefix): tensor for name, tensor in tensors.items()}
