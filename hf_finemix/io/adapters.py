"""LoRA adapters from strangers: what their configuration and their weights' names mean, read with limits."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError
from ..repo_contents import ADAPTER_CONFIG_NAME
from .checkpoint import TensorInfo
from .folder import LocalModel
from .safe_json import read_object

if TYPE_CHECKING:
    from peft import LoraConfig


_MANY = 1000
PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight|\.bias)?")
# transformers' class for each task of peft.
CLASSES = {
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
        """Understand an adapter by its configuration and the headers of its weights, or say what is not."""
        content = read_object(source.folder, ADAPTER_CONFIG_NAME)
        kind, task = content.get("peft_type"), content.get("task_type")
        if kind != "LORA":
            raise refused(source.id, f"of the kind {str(kind)[:40]!r}", "only LoRA can be mixed")
        if task is None:
            known = ", ".join(f"{name} ({kind})" for name, kind in CLASSES.items())
            raise refused(
                source.id, "that does not say its task", f"set task_type in {ADAPTER_CONFIG_NAME} to one of {known}"
            )
        if not isinstance(task, str) or task not in CLASSES:
            raise refused(source.id, f"for the task {str(task)[:40]!r}", f"there are {', '.join(CLASSES)}")
        for name, value in content.items():
            if name not in _UNDERSTOOD | _OF_TRAINING and value not in (None, False, [], {}):
                raise refused(source.id, f"with {name[:60]}", "this variant of LoRA is not understood")
        if content.get("init_lora_weights") not in _PLAIN_STARTS:
            start = str(content["init_lora_weights"])[:40]
            raise refused(source.id, f"that starts from {start}", "it belongs to a changed base: convert it to LoRA")
        named = {}
        for name, info in tensors.items():
            if not name.startswith(PREFIX):
                raise refused(source.id, f"with a weight {name[:100]!r}", f"its names must start with {PREFIX}")
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
            raise refused(source.id, "without any LoRA weight", "get it again")
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
        """The configuration made anew, of the weights' modules and ranks: no stranger's pattern is ever matched."""
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
            raise refused(self.id, f"with {wrong[0]} = {str(given[wrong[0]])[:60]}", "it cannot be understood")
        usual, alpha_of = next(iter(ranks.values())), {}
        for pattern, alpha in reversed(alphas.items()):  # as peft matches them, of several the first one
            alpha_of |= {module: alpha for module in ranks if re.match(rf"(.*\.)?({pattern})$", module)}
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


def refused(adapter: str, what: str, why: str) -> FineMixingError:
    return FineMixingError(f"{adapter} is an adapter {what}: {why}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
