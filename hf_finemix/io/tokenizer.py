"""Which tokenizer a cleaned model gets: the base's, unless the suspect's really is another one."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from ..errors import FineMixingError, told_as
from ..repo_contents import TEMPLATE_FOLDER, TEMPLATE_NAME, TOKENIZER_FILES
from .folder import small_files
from .safe_config import copy_without_code
from .safe_json import check_inside, read_json, read_object

logger = logging.getLogger(__name__)

# What decides which ids a text becomes. Truncation and padding are settings of a run, not of the model.
_PARTS = {"vocabulary": ("model", "vocab"), "merges": ("model", "merges"), "normalizer": ("normalizer",)}
_PARTS |= {"pre-tokenizer": ("pre_tokenizer",), "added tokens": ("added_tokens",)}
# Twice what the largest public tokenizers have.
MAX_TOKENIZER_BYTES, MAX_TOKENIZER_ENTRIES, MAX_TOKEN_ID = 1 << 26, 5_000_000, 10_000_000
MAX_TEMPLATES, MAX_TEMPLATE_BYTES = 50, 1 << 20
_NOT_COMPARED = ["not compared: the suspect has no tokenizer.json"]


def choose_tokenizer(suspect: Path, base: Path | None) -> tuple[Any, dict[str, Any]]:
    """
    Load the tokenizer for a suspect without trusting the suspect's configuration, which can name local files.

    It is the base's, except where the suspect's vocabulary, merges, normalizer, pre-tokenizer or added tokens differ,
    or there is no base: then the suspect's `tokenizer.json` is taken, and of the rest of it only its chat templates,
    which are data. With the base's tokenizer go the base's templates: a stranger's can put words into every prompt.

    Returns:
        `tuple[PreTrainedTokenizerFast, dict]`: The tokenizer, and for the report `source` ("base" or "suspect"),
        `differences` (names of the parts that differ) and, where there are any, `chat_template` (whose is taken) and
        `chat_template_left` (`True` where the suspect's is not).
    """
    file, ours = suspect / "tokenizer.json", load_tokenizer(base) if base is not None else None
    if ours is None and not file.is_file():
        raise FineMixingError(
            f"no fast tokenizer (tokenizer.json) in {suspect}{f' or {base}' if base else ''}: add it there."
        )
    differences = _compare(suspect, ours)
    source = "suspect" if differences and file.is_file() else "base"
    theirs, template = _templates(suspect), ours.chat_template if ours else base and _templates(base)
    note = {"source": source, "differences": differences, **_whose(theirs, template, tokenizer=source)}
    if source == "base":
        return ours, note
    settings = {}
    if ours is not None:
        settings = {name: getattr(ours, name) for name in ("model_max_length", "padding_side", "model_input_names")}
        settings |= ours.special_tokens_map
    tokenizer = _from_file(file, settings)
    tokenizer.chat_template = theirs or template
    return tokenizer, note


def copy_tokenizer(suspect: Path, base: Path, folder: Path) -> dict[str, Any]:
    """
    As [`choose_tokenizer`], from folder to folder: the base's files are copied as they are, fast tokenizer or not. The
    `source` is `None` where neither has a tokenizer.
    """
    ours, theirs = base / "tokenizer.json", suspect / "tokenizer.json"
    files = [name for name in small_files(base) if name in TOKENIZER_FILES or name.startswith(f"{TEMPLATE_FOLDER}/")]
    if not files and not theirs.is_file():
        return {"source": None, "differences": []}
    if ours.is_file():
        same = not theirs.is_file() or not _differences(_read(theirs), _read(ours))
    else:  # the library can make a fast tokenizer of a vocabulary; a slow one is copied as it is
        same = not theirs.is_file() and load_tokenizer(base) is None
    if same:
        for name in files:
            copy_without_code(base / name, folder / name)
        differences = [] if theirs.is_file() else _NOT_COMPARED
        return {"source": "base", "differences": differences, **_whose(_templates(suspect), _templates(base))}
    tokenizer, note = choose_tokenizer(suspect, base)
    tokenizer.save_pretrained(folder)
    if note["source"] == "suspect":
        shutil.copyfile(theirs, folder / theirs.name)
    return note


def tell_choice(note: dict[str, Any], suspect: str) -> None:
    """Say in the log whose chat template was taken, where it is not the base's or the suspect has another one."""
    if note.get("chat_template_left"):
        logger.warning(
            "The chat template of %s is left, as the tokenizer is the base's%s: a template can put words into every "
            "prompt. Put it into the base's folder if you have read it.",
            suspect,
            "" if note["chat_template"] else ", which has none",
        )
    elif note.get("chat_template") == "suspect":
        logger.warning("The chat template is that of %s, as the tokenizer is: read it before you use it.", suspect)


def _whose(suspect: Any, base: Any, *, tokenizer: str = "base") -> dict[str, Any]:
    """For the report: whose chat template goes with the tokenizer of one of them, and whether one is left."""
    if not suspect and not base:
        return {}
    if tokenizer == "suspect" and suspect:
        return {"chat_template": "suspect"}
    taken = {"chat_template": "base" if base else None}
    return {**taken, "chat_template_left": True} if suspect and suspect != base else taken


def _templates(folder: Path) -> str | dict[str, str] | None:
    """The chat templates of a folder that may be a stranger's, as transformers would find them."""
    files = {name: folder / name for name in small_files(folder) if name.startswith(f"{TEMPLATE_FOLDER}/")}
    files |= {TEMPLATE_NAME: folder / TEMPLATE_NAME} if (folder / TEMPLATE_NAME).is_file() else {}
    found = {}
    for name, path in list(files.items())[:MAX_TEMPLATES]:
        check_inside(path, folder)
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise FineMixingError(f"{path} is far too large for a chat template: take it away.")
        text = path.read_text(encoding="utf-8", errors="replace")
        found["default" if name == TEMPLATE_NAME else path.stem] = text
    if not found:
        given = read_object(folder, "tokenizer_config.json").get("chat_template")
        given = given if isinstance(given, list) else [{"name": "default", "template": given}]
        for entry in given[:MAX_TEMPLATES]:
            name, text = (entry.get(key) for key in ("name", "template")) if isinstance(entry, dict) else (None, None)
            if isinstance(text, str) and isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}", name):
                found[name] = text[:MAX_TEMPLATE_BYTES]
    return found["default"] if set(found) == {"default"} else found or None


def load_tokenizer(folder: Path) -> Any | None:
    """The fast tokenizer of a folder that is trusted; `None` where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None
    # Where the files of a vocabulary are missing, transformers makes a tokenizer of special tokens alone.
    tokenizer.init_kwargs.pop("auto_map", None)  # which would be saved with it
    if not tokenizer.is_fast or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        return None
    return tokenizer


def largest_id(file: Path) -> int:
    """The largest id in a tokenizer.json, of its vocabulary or an added token; -1 where there is none."""
    return _largest_id(_read(file))


def check_ids(highest: int, rows: int) -> None:
    """Raise a [`FineMixingError`] where a tokenizer has tokens that a model of so many embeddings has none for."""
    if highest >= rows:
        raise FineMixingError(
            f"the tokenizer's ids go up to {highest} and the model has only {rows} embeddings: it is another model's "
            "tokenizer, give the right tokenizer.json."
        )


def token_ids_within_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text where it stands behind a word: many tokenizers write its first letter another way there."""
    before, whole = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in ("a", f"a {text}"))
    return whole[len(before) :]


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [name for name, keys in _PARTS.items() if _part(theirs, keys) != _part(ours, keys)]


def _compare(suspect: Path, ours: Any | None) -> list[str]:
    """What differs in a suspect's tokenizer; without tokenizer.json its vocab.txt is compared, if there is one."""
    file, words = suspect / "tokenizer.json", suspect / "vocab.txt"
    if ours is None:
        return ["the base has no tokenizer"]
    if file.is_file():
        return _differences(_read(file), json.loads(ours.backend_tokenizer.to_str()))
    if not words.is_file():
        return _NOT_COMPARED
    found = words.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    if {word: i for i, word in enumerate(found)} != ours.get_vocab():
        raise FineMixingError(
            f"{words} is not the base's vocabulary: convert the suspect's tokenizer to tokenizer.json."
        )
    return []


def _read(file: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    raw = read_json(file, max_bytes=MAX_TOKENIZER_BYTES, max_entries=MAX_TOKENIZER_ENTRIES)
    if isinstance(raw, dict) and _largest_id(raw) > MAX_TOKEN_ID:
        raise FineMixingError(f"{file} has token ids above {MAX_TOKEN_ID:,}: it is broken, or meant to break.")
    with told_as(f"{file} is not a tokenizer that can be read"):
        # Through the library and back, so that only meaning is compared, not how an older version wrote it down.
        return json.loads(Tokenizer.from_file(str(file)).to_str())


def _largest_id(tokenizer: dict[str, Any]) -> int:
    """Of vocabulary and added tokens: the library would make room for as many."""
    vocabulary, added = _part(tokenizer, ("model", "vocab")), tokenizer.get("added_tokens")
    # Unigram has a list of words, whose places are their ids.
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += range(len(vocabulary)) if isinstance(vocabulary, list) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return max((number for number in ids if isinstance(number, (int, float))), default=-1)


def _from_file(file: Path, settings: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    _read(file)
    backend = Tokenizer.from_file(str(file))
    known = backend.get_vocab()
    # What the base takes for special would be added to a vocabulary that lacks it, and have no row in the model.
    settings = {name: value for name, value in settings.items() if not name.endswith("_token") or value in known}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    # Without a config the roles of special tokens are known by their usual names only.
    roles = {"pad_token": ("[PAD]", "<pad>"), "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>")}
    roles |= {"sep_token": ("[SEP]", "</s>"), "mask_token": ("[MASK]", "<mask>")}
    for role, names in roles.items():
        found = next((name for name in names if name in known), None)
        if found and getattr(tokenizer, role) is None:
            setattr(tokenizer, role, found)
    return tokenizer


def _part(content: dict[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
