"""What a model class of transformers calls its weights: as it was told once, else from the class itself."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.compat import forget_attention
from ..io.safe_config import check_counts, read_model_config, without_unsafe_keys
from .kept_answers import keep_answer, kept_answer
from .names import named_tensors

logger = logging.getLogger(__name__)


@dataclass
class DiskLayout:
    """Two checkpoints on disk: canonical name, by the suspect's class → name on disk."""

    suspect: dict[str, str]  # what its class has a place for
    base: dict[str, str]
    embedding: str | None = None  # the input embedding's canonical name
    aliases: dict[str, list[str]] = field(default_factory=dict)  # other canonical names of tied weights, by the first
    buffers: set[str] = field(default_factory=set)  # what is no parameter
    converted: dict[str, list[str]] = field(default_factory=dict)  # merged or split on loading → names on disk
    ignored: list[str] = field(default_factory=list)  # names on disk of what the suspect's class has no place for


def disk_layout(
    suspect: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], architecture: str, config: dict[str, Any]
) -> DiskLayout:
    """
    Find the canonical names of the tensors of two checkpoints, which are given by their names on disk.

    They are told by the suspect's class, made without weights from its config.json; where it has told them of these
    very names and config before, they are as they were kept then.
    """
    question = "layout", architecture, config, sorted(suspect), sorted(base)
    layout = _read_layout(kept_answer(*question), suspect, base)
    if layout is None:
        logger.debug("Reading the layout of %s from its class in transformers.", architecture)
        layout = _layout_by_class(suspect, base, architecture, config)
        if not layout.converted:  # which goes by shapes, too
            keep_answer(asdict(layout) | {"buffers": sorted(layout.buffers)}, *question)
    return layout


def _read_layout(content: Any, suspect: Collection[str], base: Collection[str]) -> DiskLayout | None:
    """A layout of these names as it was kept; `None` for anything else."""
    try:
        layout = DiskLayout(**{**content, "buffers": set(content["buffers"])})
        others = {name for names in layout.aliases.values() for name in names}
        texts = {layout.embedding or "", *layout.buffers, *others}
        sources = [*layout.suspect.values(), *layout.ignored]
        complete = sorted(sources) == sorted(suspect) and set(layout.base.values()) == set(base)
        return layout if complete and all(isinstance(text, str) for text in texts) and not layout.converted else None
    except (TypeError, KeyError, AttributeError):
        return None


def ties_of_base(config: Any, base: Collection[str], suspect: Collection[str]) -> dict[str, str]:
    """
    What the base has no tensor of its own for → the one that its class, by its `config`, ties it to.

    Empty where nothing of the suspect is missing in the base, by canonical names, or the base's class is not known.
    """
    if all(name in base for name in suspect):
        return {}
    try:
        architecture, config = read_model_config(config, "the base's config.json")
        groups = kept_answer("ties", architecture, config)
        if not _are_groups(groups):
            aliases = named_tensors(_empty_model(architecture, config, max_layers=len(base))).aliases
            groups = [[name, *others] for name, others in aliases.items() if others]
            keep_answer(groups, "ties", architecture, config)
    except FineMixingError:  # its weights are what matters, and it need not be a model that can be made
        return {}
    present = [(group, next((name for name in group if name in base), None)) for group in groups]
    return {name: first for group, first in present if first for name in group if name not in base}


def _are_groups(content: Any) -> bool:
    """Whether what was kept is lists of names."""
    groups = content if isinstance(content, list) else [None]
    return all(isinstance(group, list) and all(isinstance(name, str) for name in group) for group in groups)


def _layout_by_class(
    suspect: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], architecture: str, config: dict[str, Any]
) -> DiskLayout:
    from .loaded_layout import LoadedLayout

    model = _empty_model(architecture, config, max_layers=len(suspect))
    named = named_tensors(model)
    ours, theirs = LoadedLayout(_Headers("suspect", suspect), model), LoadedLayout(_Headers("base", base), model)
    known = {*named.tensors, *(other for others in named.aliases.values() for other in others)}
    layout = DiskLayout(
        {name: sources[0] for name, sources in ours.sources.items() if name in known},
        {name: sources[0] for name, sources in theirs.sources.items()},
        named.embedding,
        {name: others for name, others in named.aliases.items() if others},
        named.buffers,
        {name: side.sources[name] for side in (ours, theirs) for name in side.converted},
        sorted(source for name, sources in ours.sources.items() if name not in known for source in sources),
    )
    for first, others in layout.aliases.items():  # tied weights go by the first name, whichever is on disk
        present = next((name for name in (first, *others) if name in layout.suspect), first)
        if present != first:
            layout.suspect[first] = layout.suspect.pop(present)
    return layout


class _Headers(Checkpoint):
    """Names, shapes and dtypes of a checkpoint, wherever it is."""

    def __init__(self, role: str, tensors: Mapping[str, TensorInfo]):
        self.folder, self.tensors = Path(f"the {role}"), dict(tensors)


def _empty_model(architecture: str, config: dict[str, Any], max_layers: int) -> Any:
    """The suspect's class, on the meta device, which takes no memory for weights."""
    check_counts(config, max(max_layers, 1000))
    import torch
    import transformers

    try:
        cls = getattr(transformers, architecture, None)
    except ImportError:  # it needs a library that is not there
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise FineMixingError(f"transformers {transformers.__version__} has no model class {architecture}.")
    # transformers goes by `model_type` alone: beside another class, we would read other names than it does.
    if config.get("model_type") != cls.config_class.model_type:
        raise FineMixingError(
            f"config.json says model_type {config.get('model_type')!r}, and {architecture} is of "
            f"{cls.config_class.model_type!r}: set both to what the model is."
        )
    try:
        settings = cls.config_class.from_dict(without_unsafe_keys(config))
        forget_attention(settings)
        with torch.device("meta"):
            return cls(settings)
    except Exception as error:  # a configuration from a stranger can break anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FineMixingError(f"{architecture} cannot be made from its config.json: {reason}.") from error
