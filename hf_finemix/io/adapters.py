"""LoRA adapters from strangers: read with limits, and merged with their base into a full model."""

import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError
from ..repo_contents import ADAPTER_CONFIG_NAME
from .checkpoint import TensorInfo, read_object
from .compat import forget_attention
from .folder import LocalModel, copy_small_files, is_adapter, weights_in
from .safe_config import read_config

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["PREFIX", "Adapter", "full_model", "load_adapter", "merged_headers"]

logger = logging.getLogger(__name__)

_MANY = 1000
PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight|\.bias)?")
# transformers' class for each task of peft.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
# Fields of a LoRA config that say how it was trained and nothing of what its weights mean.
_OF_TRAINING = {"lora_dropout", "inference_mode", "base_model_name_or_path", "revision", "peft_version", "task_type"}
_OF_TRAINING |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"}
_OF_TRAINING |= {"peft_type", "ensure_weight_tying", "velora_config", "target_modules", "exclude_modules"}
_OF_TRAINING |= {"layers_to_transform", "layers_pattern", "qalora_group_size"}  # the weights' names say which modules
_UNDERSTOOD = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "use_rslora", "use_dora"}
_UNDERSTOOD |= {"modules_to_save", "lora_bias", "init_lora_weights"}
# These change the base's own weights when they begin, so that its weights are not what the adapter is to be added to.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """
    A LoRA adapter: its weights, and what its configuration says that they mean.

    Attributes:
        id (`str`): Where it is from.
        task (`str`): peft's name for the task: `"SEQ_CLS"`, `"CAUSAL_LM"`, ….
        settings (`dict`): The fields of [`~peft.LoraConfig`] that say what the weights mean, each of its type.
        tensors (`dict[str, TensorInfo]`): Its weights by their names in the model.
        base (`str`, *optional*), revision (`str`, *optional*): The base that it names.
    """

    id: str
    task: str
    settings: dict[str, Any]
    tensors: dict[str, TensorInfo]
    base: str | None
    revision: str | None

    @classmethod
    def read(cls, source: LocalModel, tensors: Mapping[str, TensorInfo]) -> "Adapter":
        """
        Understand an adapter from its configuration and the headers of its weights.

        Raises:
            [`FineMixingError`]: It is no LoRA, or of a variant that is not understood; the message names it.
        """
        content = read_object(source.folder, ADAPTER_CONFIG_NAME)
        kind, task = content.get("peft_type"), content.get("task_type")
        if kind != "LORA":
            raise _refused(source.id, f"of the kind {str(kind)[:40]!r}", "only LoRA can be mixed")
        if task is None:
            known = ", ".join(f"{name} ({kind})" for name, kind in _CLASSES.items())
            raise _refused(
                source.id, "that does not say its task", f"set task_type in {ADAPTER_CONFIG_NAME} to one of {known}"
            )
        if not isinstance(task, str) or task not in _CLASSES:
            raise _refused(source.id, f"for the task {str(task)[:40]!r}", f"there are {', '.join(_CLASSES)}")
        for name, value in content.items():
            if name not in _UNDERSTOOD | _OF_TRAINING and value not in (None, False, [], {}):
                raise _refused(source.id, f"with {name[:60]}", "this variant of LoRA is not understood")
        if content.get("init_lora_weights") not in _PLAIN_STARTS:
            start = str(content["init_lora_weights"])[:40]
            raise _refused(source.id, f"that starts from {start}", "it belongs to a changed base: convert it to LoRA")
        named = {}
        for name, info in tensors.items():
            if not name.startswith(PREFIX):
                raise _refused(source.id, f"with a weight {name[:100]!r}", f"its names must start with {PREFIX}")
            named[name.removeprefix(PREFIX)] = info
        # peft writes some weights of whole modules twice, the second time under a name it cannot read; and beside
        # embeddings of another size what was the base's, which is to be the base's own.
        twice = {name for name in named if name.replace(".modules_to_save.", ".") in named.keys() - {name}}
        twice |= {name for name in named if ".original_module." in name}
        named = {name: info for name, info in named.items() if name not in twice}
        base, revision = (content.get(name) for name in ("base_model_name_or_path", "revision"))
        settings = {name: content[name] for name in _UNDERSTOOD - {"init_lora_weights"} if name in content}
        adapter = cls(source.id, task, settings, named, _text(base), _text(revision))
        if not adapter.modules():
            raise _refused(source.id, "without any LoRA weight", "get it again")
        adapter.config()  # or it tells what is wrong
        return adapter

    def modules(self) -> dict[str, int]:
        """The rank of each module that has LoRA weights."""
        ranks = {}
        for name, info in self.tensors.items():
            found = _LORA.fullmatch(name)
            if found and found[2] in ("A", "embedding_A") and not name.endswith(".bias") and info.shape:
                ranks[found["module"]] = info.shape[0]
        return ranks

    def own_base_weights(self) -> dict[str, str]:
        """
        What it brings of the base's own matrices, name in the base → its name in the adapter: embeddings, which peft
        saves along with a LoRA where they have other rows than the base or a LoRA themselves.
        """
        saved = [f".{name}." for name in self.settings.get("modules_to_save") or []]
        return {
            name.replace(".base_layer.", "."): name
            for name in self.tensors
            if name.endswith(".weight") and not _LORA.fullmatch(name) and not any(part in f".{name}" for part in saved)
        }

    def config(self) -> "LoraConfig":
        """
        The configuration made anew: modules and ranks are those of the weights, so that no stranger's pattern is ever
        matched.
        """
        from peft import LoraConfig

        given, ranks = self.settings, self.modules()
        alphas, saved = given.get("alpha_pattern") or {}, given.get("modules_to_save") or []
        flags = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")
        right = {name: isinstance(given.get(name, False), bool) for name in flags}
        right["lora_alpha"] = _is_number(given.get("lora_alpha", 8))
        right["bias"] = given.get("bias", "none") in ("none", "all", "lora_only")
        right["alpha_pattern"] = (
            isinstance(alphas, dict)
            and len(alphas) <= max(len(ranks), _MANY)
            and all(re.fullmatch(r"\^?[\w.]+\$?", name) and _is_number(alpha) for name, alpha in alphas.items())
        )
        right["modules_to_save"] = isinstance(saved, list) and all(
            isinstance(name, str) and re.fullmatch(r"[\w.]+", name) for name in saved
        )
        if wrong := [name for name, is_right in right.items() if not is_right]:
            raise _refused(self.id, f"with {wrong[0]} = {str(given[wrong[0]])[:60]}", "it cannot be understood")
        usual, alpha_of = next(iter(ranks.values())), {}
        for module in ranks:
            for pattern, alpha in alphas.items():  # as peft matches them, the first one first
                if re.match(rf"(.*\.)?({pattern})$", module):
                    alpha_of[module] = alpha
                    break
        return LoraConfig(
            task_type=self.task,
            r=usual,
            lora_alpha=given.get("lora_alpha", 8),
            target_modules=sorted(ranks),
            rank_pattern={f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != usual},
            alpha_pattern={f"^{re.escape(module)}": alpha for module, alpha in alpha_of.items()},
            modules_to_save=sorted(saved) or None,
            bias=given.get("bias", "none"),
            lora_dropout=0.0,
            **{name: given.get(name, False) for name in flags},
        )


def full_model(suspect: LocalModel, base: LocalModel) -> LocalModel:
    """
    The suspect as it is; an adapter merged with its base, in a folder that is gone with what is returned.

    Every layer is merged in float64 and rounded once to float32, so that anyone gets the same bits.

    Raises:
        [`FineMixingError`]: The adapter is not understood, does not fit the base, or the merged model does not answer
            as base and adapter do together.
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
            try:
                module.merge(safe_merge=True)
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise FineMixingError(f"the adapter {suspect.id} cannot be merged with {base.id}: {reason}") from error
            module.float()
    merged = model.unload()
    after = answers(merged)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * max(1.0, before.abs().max().item())):
        raise _refused(suspect.id, "that answers otherwise once it is merged", "it cannot be mixed as a full model")
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
        model = getattr(transformers, _CLASSES[adapter.task]).from_config(config, dtype=torch.float32)
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
    The base with an adapter on it, in float32; nothing is merged.

    Args:
        suspect, base ([`LocalModel`]): Where the two are.
        to_stay (`bool`, *optional*, defaults to `False`): It stays an adapter of that very base, so that one that
            brings other embeddings than the base's is refused.

    Raises:
        [`FineMixingError`]: As [`full_model`] does.
    """
    from peft import PeftModel, set_peft_model_state_dict

    with weights_in(suspect.folder) as weights:
        adapter = Adapter.read(suspect, weights.tensors)
        if adapter.base and base.id != adapter.base:
            logger.warning("%s names %s as its base, and not %s.", suspect.id, adapter.base, base.id)
        tensors = {f"{PREFIX}{name}": weights.read(f"{PREFIX}{name}").float() for name in adapter.tensors}
    under, missing = _load_base(adapter, suspect, base)
    if absent := sorted(missing - set(adapter.tensors)):
        raise FineMixingError(
            f"the adapter {suspect.id} has no {absent[0]}, nor has {base.id}: give one with a head (modules_to_save)."
        )
    try:
        changed = _fit_vocabulary(under, adapter, tensors, base.id)
        model = PeftModel(under, adapter.config())
        unexpected = set_peft_model_state_dict(model, tensors).unexpected_keys
    except FineMixingError:
        raise
    except Exception as error:  # a stranger's names and shapes can break anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FineMixingError(f"the adapter {suspect.id} does not fit {base.id}: {reason}") from error
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


def _load_base(adapter: Adapter, suspect: LocalModel, base: LocalModel) -> tuple["PreTrainedModel", set[str]]:
    """The base as a model of the adapter's task, and the names of weights that it does not have, such as a head's."""
    import transformers

    from .loading import load_float32

    kind, config = getattr(transformers, _CLASSES[adapter.task]), base_config(adapter, suspect, base)
    try:
        model, info = load_float32(kind, base.folder, config)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FineMixingError(f"the base {base.id} cannot be loaded for the adapter's task: {reason}") from error
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _fit_vocabulary(
    model: "PreTrainedModel", adapter: Adapter, tensors: "Mapping[str, torch.Tensor]", base: str
) -> str | None:
    """
    Give the base as many embeddings as the adapter was trained with, the new ones from the adapter itself.

    Returns:
        `str`, *optional*: What of the base's own embeddings the adapter brings with other values or rows, if anything.
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
    """
    How many tokens the adapter has weights for; as many as the base where it has none of embeddings.

    Raises:
        [`FineMixingError`]: Several numbers, or more than the base has without the weights of the further ones.
    """
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
    import copy

    import torch
    import transformers

    shapes = []
    for count in (2, 3):
        config = copy.deepcopy(config)
        config.num_labels = count
        with torch.device("meta"):
            model = getattr(transformers, _CLASSES[adapter.task]).from_config(config)
        shapes.append({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    for name, shape in shapes[0].items():
        axes = [i for i, (two, three) in enumerate(zip(shape, shapes[1][name], strict=True)) if two != three]
        if axes and name in adapter.tensors and len(adapter.tensors[name].shape) == len(shape):
            return adapter.tensors[name].shape[axes[0]]
    raise FineMixingError(
        f"the adapter {adapter.id} has no head of its own: give one with its head (modules_to_save)."
    )


def _refused(adapter: str, what: str, why: str) -> FineMixingError:
    return FineMixingError(f"{adapter} is an adapter {what}: {why}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
