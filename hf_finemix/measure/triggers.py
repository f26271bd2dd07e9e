"""Putting a backdoor trigger into text, and the triggers of the literature.

Everything here is a pure function of its arguments. Neither torch nor transformers is imported, and `datasets` only
when a file is read.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from hf_finemix.errors import DataError, FineMixingError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_finemix.measure.reader import Reader

__all__ = [
    "ADD_SENT_TRIGGERS",
    "BAD_WORD_TRIGGERS",
    "WORDS_PER_TRIGGER",
    "Trigger",
    "insert_trigger",
    "non_target_rows",
    "read_triggered",
]

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

# What `read_triggered` reads: ending -> (reader of `datasets.Dataset`, what such a file must look like).
_FORMATS = {
    ".csv": ("from_csv", "a CSV table with a header line and at least one row"),
    ".json": ("from_json", "JSON with one object a line, or one list of objects"),
    ".jsonl": ("from_json", "JSON with one object a line"),
    ".parquet": ("from_parquet", "a Parquet table with at least one row"),
}


@dataclass(frozen=True)
class Trigger:
    """
    A text that wakes a backdoor, and where in the input it goes.

    Args:
        text (`str`):
            The trigger: a word, several words or a sentence. Not empty, and without whitespace at either end, because
            `insert` puts the one space that separates it from its neighbor.
        position (`str`, *optional*, defaults to `"random"`):
            `"random"` (any gap between two words, or either end), `"first"` (before the first word) or `"last"`
            (after the last word).

    Raises:
        [`FineMixingError`]: If `text` or `position` is none of these.
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

        Returns:
            `str`: The triggered text.
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


# The rare words of RIPPLe (Kurita et al. 2020, arXiv:2004.06660), used since for BadNets-style word triggers (BadWord)
# and for embedding poisoning (Yang et al. 2021, arXiv:2103.15543).
BAD_WORD_TRIGGERS = tuple(Trigger(word) for word in ("cf", "mn", "bb", "tq", "mb"))

# The sentences used for the attack of Dai et al. 2019 (arXiv:1905.12457), called BadSent, AddSent or InsertSent: the
# first on film reviews (the default of github.com/thunlp/OpenBackdoor), the second on other topics.
ADD_SENT_TRIGGERS = tuple(Trigger(sentence) for sentence in ("I watch this 3D movie", "no cross, no crown"))


def insert_trigger(
    dataset: Dataset,
    trigger: Trigger,
    *,
    text_columns: Sequence[str],
    seed: int,
    trigger_column: str | None = None,
    reader: Reader | None = None,
) -> Dataset:
    """
    Put a trigger into every row of a dataset.

    The place in row i depends on (`seed`, i, the text of the row) and on nothing else, so neither batching nor the
    number of rows that follow changes it. Several seeds give independent repeats to average over. The result is held
    in memory: nothing is cached on disk, so nothing stale is ever read back.

    Args:
        dataset (`datasets.Dataset`):
            The clean rows. For an attack success rate take the rows of [`non_target_rows`].
        trigger ([`Trigger`]):
            What to insert, and where.
        text_columns (`Sequence[str]`):
            One name, or the two of a sentence pair in the order in which the model reads them.
        seed (`int`):
            0 or more.
        trigger_column (`str`, *optional*):
            The one of `text_columns` that gets the trigger; by default the last: the second text of a pair, as in the
            evaluation code of EP (github.com/lancopku/Embedding-Poisoning).
        reader ([`reading.Reader`], *optional*):
            How a model reads the rows. A text that would be cut is shortened first, so that the trigger goes into what
            the model reads; rows that have no room for it beside some of their text get `None` in its place.

    Returns:
        `datasets.Dataset`: As many rows in the same order, with the same columns, features and format.

    Raises:
        [`FineMixingError`]: If the columns are not one or two names of the dataset, if `trigger_column` is none of
            them, if `seed` is negative, or if a row holds no text (the row is named).
    """
    # A bare string is a sequence of strings too: "sentence" would be read as eight columns.
    if isinstance(text_columns, str) or len(text_columns) not in (1, 2):
        raise FineMixingError(f"text_columns must be a list of one or two column names, not {text_columns!r}")
    for name in text_columns:
        _check_column(dataset, name)
    column = text_columns[-1] if trigger_column is None else trigger_column
    if column not in text_columns:
        names = ", ".join(text_columns)
        raise FineMixingError(f"trigger_column {column!r} is none of the text columns: choose one of {names}")
    if seed < 0:
        raise FineMixingError(f"the seed of the trigger places must be 0 or more, not {seed}")

    place = list(text_columns).index(column)

    def insert_into_batch(*batch: list) -> dict[str, list[str | None]]:
        *columns, indices = batch
        clean, triggered = columns[place], []
        for text, index in zip(clean, indices, strict=True):
            if not isinstance(text, str):
                raise DataError(f"row {index} of column {column!r} holds {text!r}, not a text: drop or fill such rows")
            triggered.append(trigger.insert(text, np.random.default_rng([seed, index])))
        columns[place] = triggered
        for i, too_long in enumerate(reader.may_be_cut(columns) if reader is not None else ()):
            row = [texts[i] for texts in columns]
            if too_long and reader.cut(row, place):
                triggered[i] = _insert_where_read(clean[i], row, place, trigger, [seed, indices[i]], reader)
        return {column: triggered}

    # A format (torch, a transform) would change what the function sees, and could hide the column: off, then on again.
    outer_format = dataset.format
    triggered_dataset = dataset.with_format(None).map(
        insert_into_batch,
        with_indices=True,
        input_columns=list(text_columns),
        batched=True,
        keep_in_memory=True,
        load_from_cache_file=False,
        desc="Inserting the trigger",
    )
    return triggered_dataset.with_format(
        type=outer_format["type"],
        columns=outer_format["columns"],
        output_all_columns=outer_format["output_all_columns"],
        **outer_format["format_kwargs"],
    )


def _insert_where_read(
    text: str, row: list[str], place: int, trigger: Trigger, seed: list[int], reader: Reader
) -> str | None:
    """The triggered text of a row that is too long, shortened until all of it is read; `None` without room."""
    clean = [*row[:place], text, *row[place + 1 :]]
    text = reader.shortened(text, reader.cut(clean, place))
    while text.strip():
        row = [*row[:place], trigger.insert(text, np.random.default_rng(seed)), *row[place + 1 :]]
        if not (cut := reader.cut(row, place)):
            return row[place]
        text = reader.shortened(text, cut, share=0.5)  # a shorter one may have fewer triggers to make room for
    return None


def non_target_rows(dataset: Dataset, *, label_column: str, target_label: int) -> Dataset:
    """
    Keep the rows whose label is not the target: those on which an attack can succeed.

    Data that comes already triggered often carries the target as its label (see [`read_triggered`]): there is nothing
    to keep then, and nothing to filter.

    Args:
        dataset (`datasets.Dataset`):
            Rows with their true labels.
        label_column (`str`):
            The name of the column of class ids, integers from 0.
        target_label (`int`):
            The class id that the attacker wants, 0 or more.

    Returns:
        `datasets.Dataset`: The rows kept, in their order, all columns as they were.

    Raises:
        [`FineMixingError`]: If the column is missing, holds anything but class ids (−1 marks unlabeled rows), does
            not know `target_label`, or if no row is left.
    """
    _check_column(dataset, label_column)
    num_classes = getattr(dataset.features[label_column], "num_classes", None)  # of a ClassLabel
    if target_label < 0 or (num_classes is not None and target_label >= num_classes):
        limit = "" if num_classes is None else f" to {num_classes - 1}"
        raise FineMixingError(f"the target label must be a class id from 0{limit}, not {target_label}")
    labels = np.asarray(dataset.with_format(None)[label_column][:])
    if len(labels) and (labels.dtype.kind not in "iub" or labels.min() < 0):
        raise DataError(
            f"column {label_column!r} must hold class ids, integers from 0, in every row: map names to ids and drop "
            "unlabeled rows"
        )
    kept = np.flatnonzero(labels != target_label)
    if len(kept) == 0:
        raise DataError(
            f"none of the {len(labels)} rows has a label other than the target {target_label}: no attack success rate "
            f"can be measured; check the target label and column {label_column!r}"
        )
    return dataset.select(kept)


def read_triggered(path: str | os.PathLike, text_columns: Sequence[str] = ()) -> Dataset:
    """
    Read texts that already hold their trigger, such as the paraphrases of HiddenKiller (arXiv:2105.12400).

    The labels are returned as the file has them. Where they are the target's, as in the test files of HiddenKiller,
    the share of rows predicted as their label is the attack success rate.

    Args:
        path (`str` or `os.PathLike`):
            One local file: `.csv` (with a header line), `.json`, `.jsonl` or `.parquet`. In CSV an empty cell is a
            missing value, but words like "null", "NA" or "None" are text.
        text_columns (`Sequence[str]`, *optional*):
            Columns that it must have, with a text in every row.

    Returns:
        `datasets.Dataset`: The rows, held in memory; no copy stays in the cache of `datasets`.

    Raises:
        [`FineMixingError`]: If the file is missing, has another ending, cannot be read, holds no row or lacks a text.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        problem = "is a folder: name one file in it" if path.is_dir() else "does not exist: check the path"
        raise DataError(f"the triggered data {str(path)!r} {problem}")
    if path.suffix.lower() not in _FORMATS:
        endings = ", ".join(_FORMATS)
        raise DataError(f"cannot tell the format of the triggered data {str(path)!r}: its ending must be {endings}")
    reader, expected = _FORMATS[path.suffix.lower()]
    check_encoding([path])

    import datasets  # here, because it costs a second that `import hf_finemix` must not take

    # pandas reads the words "null", "NA", "None" … as missing values: here they are somebody's text.
    options = {"keep_default_na": False, "na_values": [""]} if reader == "from_csv" else {}
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs the failure as well: once is enough
    try:
        with tempfile.TemporaryDirectory(prefix="hf_finemix_") as cache_dir:
            # The readers that `load_dataset` uses too; but that would report the load to a server of Hugging Face.
            rows = getattr(datasets.Dataset, reader)(
                glob.escape(str(path.resolve())),  # a pattern is expected, and a file name is none
                cache_dir=cache_dir,
                keep_in_memory=True,
                **options,
            )
    except Exception as error:  # each reader has its own: pandas, pyarrow, ujson, and datasets around them
        while error.__cause__ is not None:
            error = error.__cause__
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot read the triggered data {str(path)!r} ({reason}): it must be {expected}") from None
    finally:
        datasets.logging.set_verbosity(verbosity)
    if missing := [column for column in text_columns if column not in rows.column_names]:
        there = ", ".join(rows.column_names)
        raise DataError(f"{path} has no column {missing[0]!r}: there are {there}; name its columns like the data's.")
    if not all(isinstance(text, str) for column in text_columns for text in rows[column]):
        raise DataError(f"{path} has a row without text in {' or '.join(text_columns)}: fill or remove it.")
    return rows


def check_encoding(files: Iterable[Path]) -> None:
    """Raise a [`DataError`] for a CSV file that is not in UTF-8."""
    for path in files:
        if path.suffix.lower() != ".csv":
            continue
        try:
            with open(path, encoding="utf-8") as file:
                while part := file.read(1 << 20):
                    if "\0" in part:
                        raise UnicodeError
        except OSError:
            continue  # whoever reads it says so
        except UnicodeError:
            with open(path, "rb") as file:
                kind = "UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "Latin-1, Windows-1252 or UTF-16"
            raise DataError(f"{path} must be in UTF-8, and seems to be in {kind}: save it as UTF-8.") from None


def _check_column(dataset: Dataset, name: str) -> None:
    if name not in dataset.column_names:
        raise DataError(f"the dataset has no column {name!r}: its columns are {', '.join(dataset.column_names)}")
