"""Whether a row of the suspect's embeddings is the same word's in the base, by the tokenizers of both."""

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AlignmentError, FineMixingError
from ..io.safe_json import check_inside, read_json

_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
# Twice what the largest public tokenizers have.
MAX_BYTES, MAX_ENTRIES = 1 << 26, 5_000_000


def check_same_words(suspect: Path, base: Path, suspect_rows: int, base_rows: int) -> None:
    """
    Compare the tokenizers of two folders, as far as these can be read, by the rows that their input embeddings have.

    Raises:
        [`AlignmentError`]: As [`check_same_ids`] does; or the suspect has fewer rows than the base, and no tokenizer
            that tells which.
    """
    if not min(suspect_rows, base_rows):
        return
    files = suspect / "tokenizer.json", base / "tokenizer.json"
    if all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False):
        return
    theirs, ours = token_ids(suspect), token_ids(base)
    if suspect_rows < base_rows and theirs is None and ours and len(ours) > suspect_rows:
        raise AlignmentError(
            f"the suspect has embeddings of {suspect_rows:,} tokens and no tokenizer that says which, the base has "
            f"{base_rows:,} for a vocabulary of {len(ours):,}: put the suspect's own tokenizer.json into its folder."
        )
    check_same_ids(theirs or {}, ours or {}, suspect_rows, base_rows)


def check_same_ids(suspect: Mapping[str, int], base: Mapping[str, int], suspect_rows: int, base_rows: int) -> None:
    """
    Raise an [`AlignmentError`] where the rows of the two are not those of the same words.

    Tokens that only one side has (added, renamed or cut away) tell nothing, nor do those that the suspect has put into
    rows that the base does not have.
    """
    if suspect == base:
        return
    moved = [token for token, i in suspect.items() if base.get(token, i) != i]
    common = min(suspect_rows, base_rows)
    if moved := [token for token in moved if isinstance(suspect[token], int) and suspect[token] < common]:
        token = moved[0]
        raise AlignmentError(
            f"suspect and base number their vocabularies otherwise: {len(moved):,} tokens of both have another id "
            f"({token[:50]!r} is {suspect[token]} in the suspect and {base[token]} in the base; {suspect_rows:,} and "
            f"{base_rows:,} embeddings), so that a row of one is not the same word's in the other: give the base that "
            "has the suspect's vocabulary."
        )


def token_ids(folder: Path) -> dict[str, Any] | None:
    """The id of each token in the tokenizer.json or vocabulary file of a folder; `None` where none can be read."""
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    check_inside(path, folder)
    if path.suffix == ".txt":
        words = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
        return {word: i for i, word in enumerate(words)}
    try:
        content = read_json(path, max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES)
    except FineMixingError:  # which is told where the tokenizer is needed
        return None
    if not isinstance(content, dict):
        return None
    return _of_tokenizer(content) if path.name == "tokenizer.json" else content


def _of_tokenizer(content: dict[str, Any]) -> dict[str, Any] | None:
    model, added = content.get("model"), content.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, list):  # with a score each
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in words]
        words = {piece: i for i, piece in enumerate(pieces) if isinstance(piece, str)}
    if not isinstance(words, dict):
        return None
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            words[token["content"]] = token.get("id")
    return words
