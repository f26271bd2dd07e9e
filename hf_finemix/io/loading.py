"""A model folder as a classifier, or as a model of another task, loaded without running or trusting anything in it."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import FineMixingError, said
from .checkpoint import Checkpoint
from .compat import forget_attention
from .folder import LocalModel
from .safe_config import check_sizes, read_config, refuse_adapter
from .tokenizer import check_ids

_DTYPES = ("float32", "float16", "bfloat16")  # what float32 can train without loss


def load_classifier(source: LocalModel) -> PreTrainedModel:
    """
    Load a classifier in float32, in which it is fine-tuned. No code of the repo is run and no pickle is read; what is
    no classifier, or a regression, is an error.
    """
    model = load_model(source, AutoModelForSequenceClassification, "sequence classifier")
    if model.config.num_labels < 2:
        raise FineMixingError(f"{source.id} has {model.config.num_labels} class: accuracy needs two or more.")
    if model.config.problem_type == "multi_label_classification":
        raise FineMixingError(f"{source.id} gives several labels to a text: only one label a text is supported.")
    if model.config.problem_type not in (None, "single_label_classification"):
        raise FineMixingError(
            f"{source.id} is for {str(model.config.problem_type)[:100]!r}, not for one label a text."
        )
    model.config.id2label = {i: str(name) for i, name in model.config.id2label.items()}
    return model


def load_model(source: LocalModel, kind: Any, what: str) -> PreTrainedModel:
    """As [`load_classifier`], by any of transformers' Auto classes; `what` it loads, in words, is for messages."""
    refuse_adapter(source.folder, source.id)
    checkpoint = Checkpoint(source.folder)
    content = read_config(source.folder, source.id)
    for name in ("keys_to_ignore_at_inference", "output_attentions", "output_hidden_states", "return_dict"):
        content.pop(name, None)  # what comes out of the model beside, or in place of, its answers
    check_sizes(content, checkpoint.tensors)
    for file in source.folder.iterdir():
        if re.match(r"shard-\d+-model", file.name):  # for which transformers would pass by the others
            raise FineMixingError(
                f"{file} is a part of a distributed checkpoint: take it away, or save the model anew."
            )
    for name, info in checkpoint.tensors.items():
        if info.dtype.startswith("float") and info.dtype not in _DTYPES:
            raise FineMixingError(f"{source.id}: {name} is in {info.dtype}: give one in float32, float16 or bfloat16.")
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise FineMixingError(
            f"{source.id} is of a model type that transformers {transformers.__version__} does not know "
            f"({str(model_type)[:100]}): it may need code of its own, which is never run."
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(content)
        forget_attention(config)
        model, info = load_float32(kind, source.folder, config)
    except Exception as error:  # a configuration from a stranger can break anything
        reason = said(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says; get another copy of it."
        raise FineMixingError(f"{source.id} cannot be loaded as a {what}: {reason}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise FineMixingError(
            f"{source.id} is no {what}: {len(missing)} weights beside its {len(checkpoint.tensors)} are "
            f"missing or have another shape ({', '.join(missing[:10])}); give the fine-tuned model here, and its "
            "pre-trained base as base_model (--base-model)."
        )
    return model


def load_float32(kind: Any, folder: Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model by one of transformers' Auto classes and a config made here; with it, which weights were missing."""
    options = {"config": config, "dtype": torch.float32, "trust_remote_code": False, "output_loading_info": True}
    with Checkpoint(folder) as checkpoint:
        if checkpoint.wrapper:  # not by a key_mapping, which save_pretrained would turn round again
            weights = {name: checkpoint.read(name) for name in checkpoint.tensors}
            with torch.device("meta"):
                kind = type(kind.from_config(config))
            return kind.from_pretrained(None, state_dict=weights, **options)
    return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """
    Raise a [`FineMixingError`] where the tokenizer has tokens without an embedding (it is another model's), or stops
    at a word that it does not know.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    try:
        around = [*tokenizer("a")["input_ids"], *tokenizer("a", "☃ qzx")["input_ids"]]  # and what it puts there
    except Exception as error:
        if type(error) is not Exception:  # all that tokenizers says of it
            raise
        raise FineMixingError(
            f"the tokenizer stops at words that it does not know ({said(error)}): set an unknown token in "
            "tokenizer.json."
        ) from error
    check_ids(max([*tokenizer.get_vocab().values(), *around], default=-1), rows)


def agree_on_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """
    Make the tokenizer pad with the token that the model takes for padding, by which decoders (GPT-2, Llama, …) find
    the last token of a text. Where neither has one, as is usual for them, the end of a text serves.
    """
    config, size = model.config, len(tokenizer)
    ids = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id, tokenizer.eos_token_id)
    chosen = next((i for i in ids if isinstance(i, int) and 0 <= i < size), None)
    if chosen is None:
        raise FineMixingError("neither model nor tokenizer has a padding token: set pad_token_id in config.json.")
    if tokenizer.pad_token_id != chosen:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    config.pad_token_id = chosen


def max_tokens(limit: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int | None:
    """The most tokens of a text that user, tokenizer and model all take; `None` where none of them has a limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    ):
        positions -= model.config.pad_token_id + 1  # as RoBERTa does, which counts from there
    if limit is not None and limit <= (special := tokenizer.num_special_tokens_to_add(pair=True)):
        raise FineMixingError(f"max_length is {limit}, and {special} of it are special tokens: give more.")
    limits = [limit, tokenizer.model_max_length, positions]
    # A tokenizer without a limit says 10^30.
    limits = [number for number in limits if number is not None and 0 < number < 10**9]
    return min(limits) if limits else None
