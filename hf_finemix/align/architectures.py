"""What a model class of transformers calls its weights: from a table where it can be, else from the class itself."""

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AlignmentError, FineMixingError
from ..io.checkpoint import Checkpoint, TensorInfo
from ..io.safe_config import check_counts, read_model_config, without_unsafe_keys
from .names import canonical_name, named_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["TABLE", "DiskLayout", "describe", "disk_layout", "ties_of_base"]

logger = logging.getLogger(__name__)

# Written by scripts/architecture_table.py. Importing a model class takes four seconds and 300 MB; reading this, none.
TABLE = Path(__file__).with_name("architectures.json")


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
        [`DiskLayout`]: By the table, where it knows all of the suspect's names and transformers would rename none of
        either; else by the class, made without weights.

    Raises:
        [`AlignmentError`]: Two tensors on disk that become one.
        [`FineMixingError`]: transformers has no such class.
    """
    known = _known(architecture, config)
    if known is None or any(known.renamed.search(name) for name in (*suspect, *base)) or not known.has_all(suspect):
        logger.info("Reading the layout of %s from its class in transformers.", architecture)
        return _layout_by_class(suspect, base, architecture, config)
    layout = DiskLayout(
        *(_canonical(tensors, known.prefix) for tensors in (suspect, base)),
        embedding=known.embedding,
        aliases={first: others for first, *others in known.tied},
    )
    layout.buffers = {name for name in layout.suspect if _without_numbers(name) in known.buffers}
    return _name_ties(layout)


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
        known = _known(architecture, config)
        if known is not None:
            groups = known.tied
        else:
            tensors = named_tensors(_empty_model(architecture, config, max_layers=len(base)))
            groups = [(name, *others) for name, others in tensors.aliases.items()]
    except FineMixingError:  # its weights are what matters, and it need not be a model that can be made
        return {}
    present = {group: next((name for name in group if name in base), None) for group in map(tuple, groups)}
    return {name: first for group, first in present.items() if first for name in group if name not in base}


@dataclass(frozen=True)
class _Known:
    prefix: str
    embedding: str | None
    tied: tuple[tuple[str, ...], ...]
    buffers: frozenset[str]
    renamed: re.Pattern
    names: frozenset[str]

    def has_all(self, names: Collection[str]) -> bool:
        """Whether the class has a place for all of these names on disk."""
        return all(_without_numbers(canonical_name(name, self.prefix)) in self.names for name in names)


@cache
def _table() -> dict[str, Any]:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["transformers"] != version("transformers"):  # another version may name things otherwise
        return {}
    bodies = table["bodies"]
    return {
        name: {**facts, "names": [*bodies[facts["body"]], *facts["names"]]}
        for facts in table["architectures"]
        for name in facts["classes"]
    }


def _known(architecture: str, config: dict[str, Any]) -> _Known | None:
    facts = _table().get(architecture)
    if facts is None:
        return None
    _check_model_type(architecture, facts["classes"][architecture], config)
    tie = config.get("tie_word_embeddings", facts["ties_by_default"])
    return _Known(
        facts["prefix"],
        facts["embedding"],
        tuple(map(tuple, facts["tied"] if tie else facts["always_tied"])),
        frozenset(facts["buffers"]),
        re.compile("|".join(f"(?:{pattern})" for pattern in facts["renamed"]) or r"(?!)"),
        frozenset(facts["names"]),
    )


def _check_model_type(architecture: str, model_type: str, config: dict[str, Any]) -> None:
    """transformers goes by `model_type` alone: beside another class, we would read other names than it does."""
    if config.get("model_type") != model_type:
        raise FineMixingError(
            f"config.json says model_type {config.get('model_type')!r}, and {architecture} is of {model_type!r}: set "
            "both to what the model is."
        )


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _canonical(tensors: Collection[str], prefix: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in tensors:
        canonical = canonical_name(name, prefix)
        if canonical in names:
            raise AlignmentError(f"{names[canonical]!r} and {name!r} of one model are both {canonical}.")
        names[canonical] = name
    return names


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
        settings._attn_implementation = None
        with torch.device("meta"):
            return cls(settings)
    except Exception as error:  # a configuration from a stranger can break anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FineMixingError(f"{architecture} cannot be made from its config.json: {reason}.") from error


def describe(model: "torch.nn.Module") -> dict[str, Any] | None:
    """
    A class's entry in the table, but for its ties; `None` where its own names are renamed or merged.

    Args:
        model (`PreTrainedModel`): An instance on the meta device.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    transforms = get_model_conversion_mapping(model)
    patterns = sorted({pattern for transform in transforms for pattern in transform.source_patterns})
    prefix, names = model.base_model_prefix, list(model.state_dict())
    names += [canonical_name(name, prefix) for name in names]
    if any(getattr(transform, "scope_prefix", None) for transform in transforms):
        return None
    if any(re.search(pattern, name) for pattern in patterns for name in names):
        return None
    named = named_tensors(model)
    return {
        "prefix": prefix,
        "embedding": named.embedding,
        "buffers": sorted({_without_numbers(name) for name in named.buffers}),
        "names": sorted({_without_numbers(canonical_name(name, prefix)) for name in model.state_dict()}),
        "renamed": patterns,
        "tied": sorted([name, *others] for name, others in named.aliases.items() if others),
    }
