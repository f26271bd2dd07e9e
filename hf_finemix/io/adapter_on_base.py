"""A LoRA adapter on its base: in memory, merged with it into a full model, or by headers alone."""

import copy
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError, told_as
from ..repo_contents import ADAPTER_CONFIG_NAME
from .adapters import CLASSES, PREFIX, Adapter, refused
from .checkpoint import TensorInfo
from .compat import forget_attention
from .folder import LocalModel, copy_small_files, is_adapter, weights_in
from .safe_config import read_config
from .safe_json import read_object

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel


logger = logging.getLogger(__name__)


def full_model(suspect: LocalModel, base: LocalModel) -> LocalModel:
    """
    The suspect as it is; an adapter merged with its base, in a folder that is gone with what is returned.

    Every layer is merged in float64 and rounded once to float32, so that anyone gets the same bits. What does not
    answer as base and adapter do together is refused.
    """
    if not is_adapter(suspect.folder):
        return suspect
    import torch

    from .read_back import answers, save_model

    model, adapter = load_adapter(suspect, base)
    before = answers(model)
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for module in model.modules():
        if hasattr(module, "lora_A"):
            layer = module.get_base_layer()
            if uses[id(layer.weight)] > 1:  # the LoRA is of this layer, and not of what is tied to it
                layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
            module.double()
            with told_as(f"the adapter {suspect.id} cannot be merged with {base.id}"):
                module.merge(safe_merge=True)
            module.float()
    merged = model.unload()
    after = answers(merged)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, before.abs().max().item())):
        raise refused(suspect.id, "that answers otherwise once it is merged", "it cannot be mixed as a full model")
    temporary = tempfile.TemporaryDirectory(prefix="hf_finemix_")
    folder = Path(temporary.name)
    save_model(merged, folder)
    copy_small_files(suspect.folder, folder, leave=(ADAPTER_CONFIG_NAME, "config.json"))
    logger.info("%s is a LoRA adapter of %d modules: merged with %s.", suspect.id, len(adapter.modules()), base.id)
    # The adapter's own folder can be one of those that are gone with what holds them.
    return replace(suspect, folder=folder, adapter=suspect.folder, temporary=(temporary, suspect.temporary))


def merged_headers(
    suspect: LocalModel, tensors: Mapping[str, TensorInfo], base: LocalModel
) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """Of the model that [`full_model`] would write, by headers alone: its tensors, and what its config.json holds."""
    import torch
    import transformers

    adapter = Adapter.read(suspect, tensors)
    config = base_config(adapter, suspect, base)
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[adapter.task]).from_config(config, dtype=torch.float32)
        rows = _rows_of_vocabulary(adapter, model, base.id)
        if rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
    saved = model.state_dict().keys()
    # What the adapter changes on its own is not tied any more.
    untied = any(name.startswith(f"{module}.") for module in _embeddings(model) for name in adapter.tensors)
    infos = {name: TensorInfo.of(t) for name, t in model.named_parameters(remove_duplicate=not untied)}
    infos |= {name: TensorInfo.of(tensor) for name, tensor in model.named_buffers() if name in saved}
    return infos, {**config.to_dict(), "architectures": [type(model).__name__]}


def load_adapter(suspect: LocalModel, base: LocalModel, *, to_stay: bool = False) -> tuple["PeftModel", Adapter]:
    """
    The base with an adapter on it, in float32; nothing is merged. Where it is `to_stay` an adapter of that very base,
    one that brings other embeddings than the base's is refused.
    """
    import transformers
    from peft import PeftModel, set_peft_model_state_dict

    from .loading import load_float32

    with weights_in(suspect.folder) as weights:
        adapter = Adapter.read(suspect, weights.tensors)
        if adapter.base and base.id != adapter.base:
            logger.warning("%s names %s as its base, and not %s.", suspect.id, adapter.base, base.id)
        tensors = {f"{PREFIX}{name}": weights.read(f"{PREFIX}{name}").float() for name in adapter.tensors}
    kind, config = getattr(transformers, CLASSES[adapter.task]), base_config(adapter, suspect, base)
    with told_as(f"the base {base.id} cannot be loaded for the adapter's task"):
        under, info = load_float32(kind, base.folder, config)
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if absent := sorted(missing - set(adapter.tensors)):
        raise FineMixingError(
            f"the adapter {suspect.id} has no {absent[0]}, nor has {base.id}: give one with a head (modules_to_save)."
        )
    with told_as(f"the adapter {suspect.id} does not fit {base.id}"):  # a stranger's names and shapes can break it
        changed = _fit_vocabulary(under, adapter, tensors, base.id)
        model = PeftModel(under, adapter.config())
        unexpected = set_peft_model_state_dict(model, tensors).unexpected_keys
    if unexpected:
        name = unexpected[0][:100]
        raise FineMixingError(f"the adapter {suspect.id} does not fit {base.id}: there is no place for {name!r}.")
    if changed and to_stay:
        raise FineMixingError(
            f"the adapter {suspect.id} brings embeddings that {base.id} does not have ({changed}): use "
            "adapter_mode='merge', or give the base that has them."
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FineMixingError(f"the adapter {suspect.id} has values in {name} that are not finite: get it again.")
    return model.eval(), adapter


def _fit_vocabulary(
    model: "PreTrainedModel", adapter: Adapter, tensors: "Mapping[str, torch.Tensor]", base: str
) -> str | None:
    """
    Give the base as many embeddings as the adapter was trained with, the new ones from the adapter itself. Returns
    what of the base's own embeddings the adapter brings with other values or rows, if anything.
    """
    import torch

    rows, before = _rows_of_vocabulary(adapter, model, base), model.get_input_embeddings().weight.shape[0]
    if rows != before:
        brought = {  # also for what is tied to it
            id(module.weight): tensors[f"{PREFIX}{source}"]
            for name, module in _embeddings(model).items()
            for source in _whole(name, adapter)
        }
        brought = {name: brought.get(id(module.weight)) for name, module in _embeddings(model).items()}
        model.resize_token_embeddings(rows, mean_resizing=False)
        logger.info("The adapter %s was trained with %d tokens, %s has %d.", adapter.id, rows, base, before)
        for name, module in _embeddings(model).items() if rows > before else ():
            module.weight.data[before:] = brought[name][before:]
        return f"{rows} tokens, not {before}"
    theirs = dict(model.named_parameters(remove_duplicate=False))
    own = {name: tensors[f"{PREFIX}{source}"] for name, source in adapter.own_base_weights().items()}
    return next((name for name in own if name in theirs and not torch.equal(theirs[name], own[name])), None)


def _rows_of_vocabulary(adapter: Adapter, model: "PreTrainedModel", base: str) -> int:
    """How many tokens the adapter has weights for; as many as the base where it has none of embeddings."""
    found = {}
    for module in _embeddings(model):
        for kind, axis in (("weight", 0), ("base_layer.weight", 0), ("lora_B.weight", 0), ("lora_embedding_A", -1)):
            info = adapter.tensors.get(f"{module}.{kind}")
            if info is not None and info.shape:
                found[f"{module}.{kind}"] = info.shape[axis]
    if len(set(found.values())) > 1 or not all(found.values()):
        sizes = ", ".join(f"{name}: {rows}" for name, rows in found.items())
        raise FineMixingError(f"the adapter {adapter.id} has a vocabulary of no one size ({sizes}): get it again.")
    before = model.get_input_embeddings().weight.shape[0]
    rows = next(iter(found.values()), before)
    brought = {id(module.weight) for name, module in _embeddings(model).items() if _whole(name, adapter)}
    lost = [name for name, module in _embeddings(model).items() if id(module.weight) not in brought]
    if rows > before and lost:
        raise FineMixingError(
            f"the adapter {adapter.id} was trained with a vocabulary of {rows} tokens, {base} has {before}, and the "
            f"further rows of {lost[0]} are in neither: give the base as it was grown for the training."
        )
    return rows


def _whole(module: str, adapter: Adapter) -> list[str]:
    """Where an adapter brings all of a module's weight, if it does."""
    return [name for name in (f"{module}.weight", f"{module}.base_layer.weight") if name in adapter.tensors]


def _embeddings(model: "PreTrainedModel") -> dict[str, Any]:
    """The modules of input and output embeddings by name."""
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    return {name: module for name, module in model.named_modules() if any(module is found for found in wanted)}


def base_config(adapter: Adapter, suspect: LocalModel, base: LocalModel) -> "PretrainedConfig":
    """The base's configuration with the classes of the adapter's head, by name where the adapter has names."""
    from transformers import CONFIG_MAPPING

    content = read_config(base.folder, base.id)
    if content.get("model_type") not in CONFIG_MAPPING:
        raise FineMixingError(f"the base {base.id} is of a model type that this transformers does not know.")
    for name in ("num_labels", "id2label", "label2id", "problem_type"):
        content.pop(name, None)
    config = CONFIG_MAPPING[content["model_type"]].from_dict(content)
    forget_attention(config)
    if adapter.task in ("SEQ_CLS", "TOKEN_CLS"):
        config.num_labels = _classes(adapter, config)
        named = read_object(suspect.folder, "config.json").get("id2label")
        if isinstance(named, dict) and set(named) == {str(i) for i in range(config.num_labels)}:
            config.id2label = {int(i): str(name)[:200] for i, name in named.items()}
            config.label2id = {name: i for i, name in config.id2label.items()}
    return config


def _classes(adapter: Adapter, config: "PretrainedConfig") -> int:
    """How many classes the head has that the adapter brings: the size that changes with num_labels."""
    import torch
    import transformers

    shapes = []
    for count in (2, 3):
        config = copy.deepcopy(config)
        config.num_labels = count
        with torch.device("meta"):
            model = getattr(transformers, CLASSES[adapter.task]).from_config(config)
        shapes.append({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    for name, shape in shapes[0].items():
        axes = [i for i, (two, three) in enumerate(zip(shape, shapes[1][name], strict=True)) if two != three]
        if axes and name in adapter.tensors and len(adapter.tensors[name].shape) == len(shape):
            return adapter.tensors[name].shape[axes[0]]
    raise FineMixingError(
        f"the adapter {adapter.id} has no head of its own: give one with its head (modules_to_save)."
    )
