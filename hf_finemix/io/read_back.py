"""A model on its way to disk and back: what is written must load by itself, and answer as what was in memory."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FineMixingError, said
from .checkpoint import Checkpoint, TensorInfo
from .compat import COMPILED
from .folder import is_adapter
from .safe_config import read_model_config
from .safe_json import read_json
from .unwrap import without_adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


# By how much of their largest value answers may differ from those in float32, by the dtype they are computed in.
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
_TEXTS = ("The film was good, and its 2nd half (of 3) is better: naïve.", "影片很好看。\nЭто не так!  a  b")


def save_model(model: "PreTrainedModel", folder: Path) -> None:
    """Write a model as `save_pretrained` does, with what that leaves out or stumbles over although it was loaded."""
    given = getattr(model, "generation_config", None)
    idle = given is not None and not _is_strict(given)
    if idle:
        model.generation_config = type(given)()
    try:
        model.save_pretrained(folder)
    finally:
        if idle:
            model.generation_config = given
    if idle and (path := folder / "generation_config.json").is_file():
        given.to_json_file(path)
    complete_config(model.config, folder)


def read_back(folder: Path, model: Any, tokenizer: Any = None, *, base: Path | None = None) -> None:
    """
    Load what `save_pretrained` wrote from its own folder alone, and compare it with what is in memory.

    The names of classes that a configuration left out are put into it first ([`complete_config`]).

    Args:
        model (`PreTrainedModel` or `PeftModel`): What was written, in any dtype that holds the values on disk; a LoRA
            as
            one, or merged. Any other model is passed by, and one that takes no `input_ids` is only loaded.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): What was written of it.
        base (`Path`, *optional*): Of an adapter: the folder of its base.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    model = getattr(model, COMPILED, model)
    plain = without_adapter(model)
    if isinstance(tokenizer, PreTrainedTokenizerBase) and (what := _tokenizer_difference(folder, tokenizer)):
        raise _differs(what)
    if not isinstance(plain, PreTrainedModel):
        return
    complete_config(plain.config, folder)
    merged = not is_adapter(folder)
    _compare_answers(model, _load(folder, type(plain)) if merged else _load_adapter(folder, model, base))


def check_tokenizer(tokenizer: Any, config: "PreTrainedConfig") -> None:
    """Raise a [`FineMixingError`] before work for a tokenizer that would be read as another one beside its model."""
    with tempfile.TemporaryDirectory(prefix="hf_finemix_") as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if what := _tokenizer_difference(Path(folder), tokenizer):
            raise FineMixingError(
                f"the tokenizer would be read as another one, {what} once it is saved: transformers chooses its class "
                f"by the model's ({config.model_type}), give one that is of that class."
            )


def complete_config(config: "PreTrainedConfig", folder: Path) -> None:
    """
    Write the names of classes into a config.json where it would be loaded with others: transformers leaves out those
    of two classes without a name, whatever the class of the configuration has for usual.
    """
    if not (folder / "config.json").is_file():  # an adapter by itself
        return
    loaded = type(config).from_pretrained(folder, local_files_only=True)
    names = [name for name in ("id2label", "label2id") if getattr(loaded, name, None) != getattr(config, name, None)]
    if names:
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8")) | {name: getattr(config, name) for name in names}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def answers(model: Any) -> "torch.Tensor":
    """What a model answers to a few tokens, to see whether two forms of it are one."""
    import torch

    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(2, 18).remainder(len(embeddings)).view(1, 16)  # one text, for which no padding is needed
    eos = getattr(model.config.get_text_config(), "eos_token_id", None)
    if isinstance(eos, int) and 0 <= eos < len(embeddings):
        ids[0, -1] = eos  # by which some find the last token
    ids = ids.to(embeddings.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # past what a Trainer put around the model's own forward, such as lower precision
            output = type(model).forward(model, **inputs, return_dict=True)
    finally:
        model.train(training)
    return (output.logits if "logits" in output else output[0]).detach().cpu()


def _is_strict(config: "GenerationConfig") -> bool:
    """Whether it has no settings without an effect, such as a temperature where nothing is sampled."""
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def check_headers(folder: Path, written: Mapping[str, TensorInfo], embedding: str | None) -> None:
    """Compare by headers what was written from disk to disk with what was to be, the input `embedding` among it."""
    from .tokenizer import check_ids, largest_id

    with Checkpoint(folder) as weights:
        found, files = weights.tensors, {file.name for file in weights.files}
    wrong = sorted(name for name in found.keys() | written.keys() if found.get(name) != written.get(name))
    if stray := sorted({file.name for file in folder.glob("*.safetensors")} - files):
        raise _differs(f"{stray[0]} is none of its weight files")
    if wrong:
        raise _differs(f"{len(wrong)} tensors are others than were mixed ({wrong[0]})")
    read_model_config(read_json(folder / "config.json"), folder / "config.json")
    if embedding is not None and (folder / "tokenizer.json").is_file():
        check_ids(largest_id(folder / "tokenizer.json"), written[embedding].shape[0])


def _load(folder: Path, kind: type["PreTrainedModel"]) -> "PreTrainedModel":
    import torch

    try:
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library says of it
        raise _differs(f"it cannot be loaded as a {kind.__name__} ({said(error)})") from error
    for what, names in info.items():
        if names:
            raise _differs(f"{what.replace('_', ' ')} for a {kind.__name__}: {sorted(map(str, names))[0]}")
    return model


def _load_adapter(folder: Path, model: "PeftModel", base: Path | None) -> "PeftModel":
    """An adapter on its base, as its own configuration has both."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig

    under = model.get_base_model()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded = type(under).from_pretrained(
            base or under.name_or_path, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        settings = PeftConfig.from_pretrained(folder, local_files_only=True)
        settings.task_type = None  # peft's classes for tasks, which only generate, are not there for all models
        return PeftModel.from_pretrained(loaded, folder, config=settings, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise _differs(f"the adapter cannot be loaded on its base ({said(error)})") from error


def _compare_answers(model: Any, loaded: Any) -> None:
    import torch

    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # ZeRO-3 would gather it again from all processes, which wait elsewhere
    try:
        before = answers(model)
    except Exception:
        return  # it takes something else than text
    after, before = answers(loaded).double(), before.double()
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    near = max(_TOLERANCE.get(dtype, 1e-3) for dtype in dtypes) * max(1.0, before.abs().max().item())
    if before.shape != after.shape:
        raise _differs(f"it answers with {tuple(after.shape)} numbers and not {tuple(before.shape)}")
    if not torch.allclose(before, after, rtol=0.0, atol=near, equal_nan=True):
        raise _differs(f"its answers are up to {(before - after).abs().max().item():.2g} off")
    ours, theirs = (getattr(each.config, "id2label", None) for each in (model, loaded))
    if ours != theirs:
        raise _differs(f"its classes are {str(theirs)[:100]} and not {str(ours)[:100]}")


def _tokenizer_difference(folder: Path, tokenizer: Any) -> str | None:
    """What is another thing in the tokenizer of a folder, as transformers loads it."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        return f"its tokenizer cannot be loaded ({said(error)})"
    # Its class may have special tokens for usual, which are added where there are none: those are not compared.
    if not tokenizer.get_vocab().items() <= loaded.get_vocab().items():
        return "its tokenizer has another vocabulary"
    if not _special_tokens(tokenizer).items() <= _special_tokens(loaded).items():
        return "its tokenizer has other special tokens"
    if loaded.chat_template != tokenizer.chat_template:
        return "its tokenizer has another chat template"
    if [_ids(loaded, text) for text in _TEXTS] != [_ids(tokenizer, text) for text in _TEXTS]:
        return "its tokenizer makes other tokens of a text"
    return None


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _ids(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return tokenizer(text, truncation=False, padding=False)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # all that tokenizers says of a word it has no token for
            raise
        return None


def _differs(what: str) -> FineMixingError:
    return FineMixingError(
        f"what was written was read back, and it is not what was in memory: {what}. Do not use it: try the version "
        "of transformers that the model was made with."
    )
