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

from .alignment import canonical_name, named_tensors
from .checkpoint import Checkpoint, TensorInfo
from .errors import AlignmentError, FineMixingError

if TYPE_CHECKING:
    import torch

__all__ = ["TABLE", "DiskLayout", "describe", "disk_layout", "read_model_config"]

logger = logging.getLogger(__name__)

# Written by docs/architecture_table.py. Importing a model class takes four seconds and 300 MB; reading this, nothing.
TABLE = Path(__file__).with_name("architectures.json")


@dataclass
class DiskLayout:
    """
    Two checkpoints on disk under the canonical names of the suspect's class.

    Attributes:
        suspect, base (`dict[str, str]`): Canonical name → name on disk.
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


def read_model_config(content: Any, where: Path | str) -> tuple[str, dict[str, Any]]:
    """
    The class name in the content of a config.json, and the content.

    Raises:
        [`FineMixingError`]: It names no class, or says that the weights are quantised.
    """
    if not isinstance(content, dict):
        raise FineMixingError(f"{where} is not a JSON object: give the folder that save_pretrained wrote.")
    if content.get("quantization_config"):
        method = content["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else None
        raise FineMixingError(
            f"{where} says that the weights are quantised ({str(method or 'quantization_config')[:40]}), and packed "
            "integers cannot be mixed: give the model in float32, float16 or bfloat16."
        )
    kind = content.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w.-]{1,100}", kind):
        raise FineMixingError(f"{where} names no model type (model_type): set it, as save_pretrained does.")
    names = content.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,99}", name):
        raise FineMixingError(f"{where} names no model class (architectures): set it, as save_pretrained does.")
    return name, content


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
        [`DiskLayout`]: By the table where transformers would rename nothing; else by the class, made without weights.

    Raises:
        [`AlignmentError`]: Two tensors on disk that become one.
        [`FineMixingError`]: transformers has no such class.
    """
    known = _known(architecture, config)
    if known is None or any(known.renamed.search(name) for name in (*suspect, *base)):
        logger.info("Reading the layout of %s from its class in transformers.", architecture)
        return _layout_by_class(suspect, base, architecture, config)
    layout = DiskLayout(
        *(_canonical(tensors, known.prefix) for tensors in (suspect, base)),
        embedding=known.embedding,
        aliases={first: others for first, *others in known.tied},
    )
    layout.buffers = {name for name in layout.suspect if re.sub(r"\d+", "#", name) in known.buffers}
    return _name_ties(layout)


@dataclass(frozen=True)
class _Known:
    prefix: str
    embedding: str | None
    tied: tuple[tuple[str, ...], ...]
    buffers: frozenset[str]
    renamed: re.Pattern


@cache
def _table() -> dict[str, Any]:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["transformers"] != version("transformers"):  # another version may name things otherwise
        return {}
    return {name: facts for facts in table["architectures"] for name in facts["classes"]}


def _known(architecture: str, config: dict[str, Any]) -> _Known | None:
    facts = _table().get(architecture)
    if facts is None:
        return None
    tie = config.get("tie_word_embeddings", facts["ties_by_default"])
    return _Known(
        facts["prefix"],
        facts["embedding"],
        tuple(map(tuple, facts["tied"] if tie else facts["always_tied"])),
        frozenset(facts["buffers"]),
        re.compile("|".join(f"(?:{pattern})" for pattern in facts["renamed"]) or r"(?!)"),
    )


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
    from .conversion import LoadedLayout

    model = _empty_model(architecture, config, max_layers=len(suspect))
    named = named_tensors(model)
    layouts = [LoadedLayout(_Headers(tensors), model) for tensors in (suspect, base)]
    converted = {name: layout.sources[name] for layout in layouts for name in layout.converted}
    return _name_ties(
        DiskLayout(
            *({name: sources[0] for name, sources in layout.sources.items()} for layout in layouts),
            embedding=named.embedding,
            aliases={name: others for name, others in named.aliases.items() if others},
            buffers=named.buffers,
            converted=converted,
        )
    )


class _Headers(Checkpoint):
    """Names, shapes and dtypes of a checkpoint, wherever it is."""

    def __init__(self, tensors: Mapping[str, TensorInfo]):
        self.folder, self.tensors = Path("the checkpoint"), dict(tensors)


def _empty_model(architecture: str, config: dict[str, Any], max_layers: int) -> Any:
    """The suspect's class, on the meta device, which takes no memory for weights."""
    for name, value in config.items():
        if "layer" in name and isinstance(value, int) and value > max(max_layers, 1000):
            raise FineMixingError(f"config.json says {name} = {value}, with {max_layers} tensors: get another copy.")
    import torch
    import transformers

    cls = getattr(transformers, architecture, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise FineMixingError(f"transformers {transformers.__version__} has no model class {architecture}.")
    try:
        settings = cls.config_class.from_dict({key: config[key] for key in config.keys() - {"auto_map"}})
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
        "embedding": named.embedding and canonical_name(named.embedding, prefix),
        "buffers": sorted({re.sub(r"\d+", "#", name) for name in named.buffers}),
        "renamed": patterns,
        "tied": sorted([name, *others] for name, others in named.aliases.items() if others),
    }
