"""Which tokenizer a cleaned model gets: the base's, unless the suspect's really is another one."""

import json
import shutil
from pathlib import Path
from typing import Any

from .checkpoint import read_json
from .errors import FineMixingError

__all__ = ["choose_tokenizer", "copy_tokenizer", "load_tokenizer", "token_ids_within_text"]

# What decides which ids a text becomes. Truncation and padding are settings of a run, not of the model.
_PARTS = {"vocabulary": ("model", "vocab"), "merges": ("model", "merges"), "normalizer": ("normalizer",)}
_PARTS |= {"pre-tokenizer": ("pre_tokenizer",), "added tokens": ("added_tokens",)}
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
_FILES += ("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
# Twice what the largest public tokenizers have.
MAX_TOKENIZER_BYTES, MAX_TOKENIZER_ENTRIES, MAX_TOKEN_ID = 1 << 26, 5_000_000, 10_000_000
_NOT_COMPARED = ["not compared: the suspect has no tokenizer.json"]


def choose_tokenizer(suspect: Path, base: Path | None) -> tuple[Any, dict[str, Any]]:
    """
    Load the tokenizer for a suspect without trusting the suspect's configuration.

    A tokenizer config can name local files, which would then be saved and published. So the tokenizer is the base's,
    except where the suspect's vocabulary, merges, normalizer, pre-tokenizer or added tokens differ: then the suspect's
    `tokenizer.json` is taken, and nothing else of it.

    Args:
        suspect (`Path`): The suspect's folder.
        base (`Path`, *optional*): The base's folder. Without it the suspect's `tokenizer.json` is taken.

    Returns:
        `tuple[PreTrainedTokenizerFast, dict]`: The tokenizer, and for the report `source` ("base" or "suspect") and
        `differences` (names of the parts that differ).

    Raises:
        [`FineMixingError`]: Neither folder has a tokenizer that can be read.
    """
    file, tokenizer = suspect / "tokenizer.json", load_tokenizer(base) if base is not None else None
    if tokenizer is None:
        if not file.is_file():
            raise FineMixingError(
                f"no fast tokenizer (tokenizer.json) in {suspect}{f' or {base}' if base else ''}: add it there."
            )
        return _from_file(file, {}), {"source": "suspect", "differences": ["the base has no tokenizer"]}
    if not file.is_file():
        return tokenizer, {"source": "base", "differences": _compare_vocabulary(suspect / "vocab.txt", tokenizer)}
    theirs = _read(file)
    ours = json.loads(tokenizer.backend_tokenizer.to_str())
    differences = [name for name, keys in _PARTS.items() if _part(theirs, keys) != _part(ours, keys)]
    if not differences:
        return tokenizer, {"source": "base", "differences": []}
    settings = {"model_max_length": tokenizer.model_max_length, "padding_side": tokenizer.padding_side}
    settings |= {"model_input_names": tokenizer.model_input_names, **tokenizer.special_tokens_map}
    return _from_file(file, settings), {"source": "suspect", "differences": differences}


def copy_tokenizer(suspect: Path, base: Path, folder: Path) -> dict[str, Any]:
    """
    Put a tokenizer's files into a folder by the rule of [`choose_tokenizer`], without loading a model's code.

    The base's files are copied as they are; of the suspect never more than `tokenizer.json`.

    Returns:
        `dict`: `source` ("base", "suspect", or `None` where neither has a fast tokenizer) and `differences`.
    """
    ours, theirs = base / "tokenizer.json", suspect / "tokenizer.json"
    if not ours.is_file() and any((base / name).is_file() for name in _FILES[4:]):
        tokenizer, note = choose_tokenizer(suspect, base)  # which can make a fast tokenizer of these
        tokenizer.save_pretrained(folder)
        return note
    if not ours.is_file() and not theirs.is_file():
        return {"source": None, "differences": []}
    if not ours.is_file():
        _read(theirs)
        shutil.copyfile(theirs, folder / theirs.name)
        return {"source": "suspect", "differences": ["the base has no tokenizer"]}
    differences = []
    if theirs.is_file():
        left, right = _read(theirs), _read(ours)
        differences = [name for name, keys in _PARTS.items() if _part(left, keys) != _part(right, keys)]
    if differences:
        shutil.copyfile(theirs, folder / theirs.name)
        return {"source": "suspect", "differences": differences}
    for name in _FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    return {"source": "base", "differences": [] if theirs.is_file() else _NOT_COMPARED}


def load_tokenizer(folder: Path) -> Any | None:
    """The fast tokenizer of a folder that is trusted; `None` where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None
    # Where the files of a vocabulary are missing, transformers makes a tokenizer of special tokens alone.
    if not tokenizer.is_fast or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        return None
    return tokenizer


def token_ids_within_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text where it stands behind a word: many tokenizers write its first letter another way there."""
    before, whole = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in ("a", f"a {text}"))
    return whole[len(before) :]


def _compare_vocabulary(file: Path, tokenizer: Any) -> list[str]:
    """What can be said of a suspect without tokenizer.json: nothing, or that its vocab.txt is the base's."""
    if not file.is_file():
        return _NOT_COMPARED
    words = file.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    if {word: i for i, word in enumerate(words)} != tokenizer.get_vocab():
        raise FineMixingError(
            f"{file} is not the base's vocabulary: convert the suspect's tokenizer to tokenizer.json."
        )
    return []


def _read(file: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    raw = read_json(file, max_bytes=MAX_TOKENIZER_BYTES, max_entries=MAX_TOKENIZER_ENTRIES)
    if isinstance(raw, dict) and _largest_id(raw) > MAX_TOKEN_ID:
        raise FineMixingError(f"{file} has token ids above {MAX_TOKEN_ID:,}: it is broken, or meant to break.")
    try:
        # Through the library and back, so that only meaning is compared, not how an older version wrote it down.
        return json.loads(Tokenizer.from_file(str(file)).to_str())
    except Exception as error:  # tokenizers raises plain Exception
        raise FineMixingError(f"{file} is not a tokenizer that can be read: {error}.") from error


def _largest_id(tokenizer: dict[str, Any]) -> int:
    """Of vocabulary and added tokens: the library would make room for as many."""
    vocabulary = _part(tokenizer, ("model", "vocab"))
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    added = tokenizer.get("added_tokens")
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return max((number for number in ids if isinstance(number, (int, float))), default=0)


def _from_file(file: Path, settings: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    _read(file)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)), **settings)
    # Without a config the roles of special tokens are known by their usual names only.
    roles = {"pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>")}
    roles |= {"sep_token": ("[SEP]", "</s>"), "mask_token": ("[MASK]", "<mask>")}
    vocabulary = tokenizer.get_vocab()
    for role, names in roles.items():
        found = next((name for name in names if name in vocabulary), None)
        if found and getattr(tokenizer, role) is None:
            setattr(tokenizer, role, found)
    return tokenizer


def _part(content: dict[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
