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
    """
    Two checkpoints on disk under the canonical names of the suspect's class.

    Attributes:
        suspect, base (`dict[str, str]`): Canonical name → name on disk, of the suspect what its class has a place for.
        ignored (`list[str]`): Names on disk of what of the suspect it has no place for.
        embedding (`str`, *optional*): The input embedding's canonical name.
        aliases (`dict[str, list[str]]`): Other canonical names of tied weights, by the first.
        buffers (`set[str]`): What is no parameter.
        converted (`dict[str, list[str]]`): What transformers merges or splits on loading, with the names on disk.
    """

    suspect: dict[str, str]
    base: dict[str, str]
    embedding: str | None = None
    aliases: dict[str, list[str]] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    converted: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def disk_layout(
    suspect: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], architecture: str, config: dict[str, Any]
) -> DiskLayout:
    """
    Find the canonical names of the tensors of two checkpoints.

    Args:
        suspect, base (`Mapping[str, TensorInfo]`): The tensors by name on disk.
        architecture (`str`): Name of the suspect's class.
        config (`dict`): Content of the suspect's config.json.

    Returns:
        [`DiskLayout`]: By the class, made without weights; where the class has told it of these very names and config
        before, as it was kept then.

    Raises:
        [`AlignmentError`]: Two tensors on disk that become one.
        [`FineMixingError`]: transformers has no such class.
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
    What the base has no tensor of its own for, because its class ties it to one that it has.

    Args:
        config: Content of the base's config.json.
        base, suspect (`Collection[str]`): The canonical names of the tensors of both.

    Returns:
        `dict[str, str]`: Name → the name of the tensor that it is tied to. Empty where nothing of the suspect is
        missing in the base, and where the base's class is not known.
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


def _check_model_type(architecture: str, model_type: str, config: dict[str, Any]) -> None:
    """transformers goes by `model_type` alone: beside another class, we would read other names than it does."""
    if config.get("model_type") != model_type:
        raise FineMixingError(
            f"config.json says model_type {config.get('model_type')!r}, and {architecture} is of {model_type!r}: set "
            "both to what the model is."
        )


def _name_ties(layout: DiskLayout) -> DiskLayout:
    """Call tied weights by their first name, whichever of their names the suspect has on disk."""
    for first, others in layout.aliases.items():
        present = next((name for name in (first, *others) if name in layout.suspect), None)
        if present not in (None, first):
            layout.suspect[first] = layout.suspect.pop(present)
    return layout


def _layout_by_class(
    suspect: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], architecture: str, config: dict[str, Any]
) -> DiskLayout:
    from .loaded_layout import LoadedLayout

    model = _empty_model(architecture, config, max_layers=len(suspect))
    named = named_tensors(model)
    layouts = [
        LoadedLayout(_Headers(role, tensors), model) for role, tensors in (("suspect", suspect), ("base", base))
    ]
    known = {*named.tensors, *(other for others in named.aliases.values() for other in others)}
    ignored = [source for name, sources in layouts[0].sources.items() if name not in known for source in sources]
    converted = {name: layout.sources[name] for layout in layouts for name in layout.converted}
    return _name_ties(
        DiskLayout(
            {name: sources[0] for name, sources in layouts[0].sources.items() if name in known},
            {name: sources[0] for name, sources in layouts[1].sources.items()},
            embedding=named.embedding,
            aliases={name: others for name, others in named.aliases.items() if others},
            buffers=named.buffers,
            converted=converted,
            ignored=sorted(ignored),
        )
    )


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
    _check_model_type(architecture, cls.config_class.model_type, config)
    try:
        settings = cls.config_class.from_dict(without_unsafe_keys(config))
        forget_attention(settings)
        with torch.device("meta"):
            return cls(settings)
    except Exception as error:  # a configuration from a stranger can break anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FineMixingError(f"{architecture} cannot be made from its config.json: {reason}.") from error
