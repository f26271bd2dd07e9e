"""The YAML at the top of a stranger's card, read with limits."""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from ..io.safe_json import check_inside

MAX_CARD_CHARACTERS = 1_000_000
MAX_YAML_CHARACTERS = 50_000  # the largest cards of the Hub have that much, most of it results
MAX_ALIASES, MAX_DEPTH = 10, 50
_BLOCK = re.compile(r"\A\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|\Z)", re.DOTALL)


def read_card(folder: Path) -> str:
    """The README.md of a model folder, or "" where there is none."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    check_inside(path, folder)
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_CARD_CHARACTERS)


def front_matter(card: str) -> tuple[str | None, int]:
    """The text of the YAML block at the top of a card, and where the card's body begins. `None` without one."""
    block = _BLOCK.match(card)
    return (block[1], block.end()) if block else (None, 0)


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML of a card as a mapping; empty where it is missing, too long, broken or no mapping."""
    text, _ = front_matter(card)
    try:
        found = _load(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _load(text: str) -> Any:
    """YAML of a stranger; a `ValueError` for whatever is wrong with it."""
    # Merge keys can grow without bounds, deep nesting takes a time that does: no card needs either.
    if len(text) > MAX_YAML_CHARACTERS or re.search(r"<<[\"']?\s*:", text) or "tag:yaml.org,2002:merge" in text:
        raise ValueError("it is too long, or has merge keys")
    depth = accumulate((sign in "[{") - (sign in "]}") for sign in text)
    if max(depth, default=0) > MAX_DEPTH or re.search(r"(?m)^\s*(?:[-?] +){10}", text):
        raise ValueError("it is nested too deeply")
    try:
        # Nor more aliases than a person writes: what they stand for can stand for others again.
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)) > MAX_ALIASES:
            raise ValueError("it has too many aliases")
        return yaml.safe_load(text)
    except Exception as error:  # its constructors raise what they like
        raise ValueError(str(error)) from error
