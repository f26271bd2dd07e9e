"""Putting a backdoor trigger into text: light to import, and a pure function."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..errors import FineMixingError

Position = Literal["random", "first", "last"]

# As in the evaluation code of EP (github.com/lancopku/Embedding-Poisoning, arXiv:2103.15543): a lone trigger in a long
# review would be diluted, or cut off by the tokenizer. (That code draws one place in every hundred words, never the
# end of the text, and takes one trigger more where the length is a multiple of 100.)
WORDS_PER_TRIGGER = 100

_WORD = re.compile(r"\S+")
# Signs of scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese.
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u31f0-\u31ff\u3400-\u9fff"
_UNSPACED += "\uf900-\ufaff\uff01-\uffef\U00020000-\U0003ffff"
_UNSPACED_SIGN, _SIGN_OR_WORD = re.compile(f"[{_UNSPACED}]"), re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# Thai and Lao vowels that are written before the consonant that they follow.
_LEADING_VOWELS = "เแโใไເແໂໃໄ"


@dataclass(frozen=True)
class Trigger:
    """
    A text that wakes a backdoor, and where in the input it goes.

    Args:
        text (`str`):
            The trigger: a word, several words or a sentence. Not empty, and without whitespace at either end, because
            `insert` puts the one space that separates it from its neighbor. Else a [`FineMixingError`] is raised.
        position (`str`, *optional*, defaults to `"random"`):
            `"random"` (any gap between two words, or either end), `"first"` (before the first word) or `"last"`
            (after the last word).
    """

    text: str
    position: Position = "random"

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise FineMixingError(f"a trigger needs a text that is not empty, not {self.text!r}")
        if self.text != self.text.strip():
            raise FineMixingError(f"the trigger {self.text!r} has whitespace at an end: remove it")
        if self.position not in get_args(Position):
            allowed = ", ".join(get_args(Position))
            raise FineMixingError(f"unknown trigger position {self.position!r}: choose one of {allowed}")

    def insert(self, text: str, rng: np.random.Generator) -> str:
        """
        Return `text` with the trigger in it, once per 100 words of `text`, rounded up, and at least once.

        Words are what `str.split()` finds; in texts that are written without spaces between words (Chinese, Japanese,
        Thai, …) every sign counts as one. Only the trigger and one space beside it are added: all other
        characters of `text`, its whitespace included, stay as they are. Between two signs that are not apart the
        trigger gets a space on either side, but for where it is itself of such a script. A text without any word
        becomes the trigger alone.

        Args:
            text (`str`):
                The clean text, of n ≥ 0 words.
            rng (`numpy.random.Generator`):
                Drawn from for `"random"` only. The places are uniform over the n + 1 gaps (before, between and after
                the words), and no two triggers share a gap. With `"first"` and `"last"` all of them stand side by
                side at that end.
        """
        words = _words(text)
        if not words:
            return self.text
        count = -(-len(words) // WORDS_PER_TRIGGER)
        if self.position == "random":
            gaps = sorted(rng.choice(len(words) + 1, size=count, replace=False).tolist(), reverse=True)
        else:
            gaps = [0 if self.position == "first" else len(words)] * count
        for gap in gaps:  # from the end, so that the offsets of the words before stay true
            offset = words[gap][0] if gap < len(words) else words[-1][1]
            before, after = text[:offset], text[offset:]
            text = before + self._space(before[-1:], self.text[0]) + self.text
            text += (self._space(self.text[-1], after[:1]) if gap < len(words) else "") + after
        return text

    @staticmethod
    def _space(left: str, right: str) -> str:
        """What goes between two signs that are to be apart."""
        joined = bool(_UNSPACED_SIGN.match(left) and _UNSPACED_SIGN.match(right))
        return "" if joined or not left.strip() or not right.strip() else " "


def _words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end; where it is mostly without spaces its signs, each with its marks."""
    if 2 * len(_UNSPACED_SIGN.findall(text)) < sum(map(len, text.split())) or not text.strip():
        return [match.span() for match in _WORD.finditer(text)]
    words: list[tuple[int, int]] = []
    for match in _SIGN_OR_WORD.finditer(text):
        start, end = match.span()
        joined = words and words[-1][1] == start
        if joined and (unicodedata.category(text[start])[0] == "M" or text[start - 1] in _LEADING_VOWELS):
            words[-1] = words[-1][0], end
        else:
            words.append((start, end))
    return words
