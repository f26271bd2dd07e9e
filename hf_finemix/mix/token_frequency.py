"""How often each token occurs in ordinary text: the f_i of E-PUR, offline and for any fast tokenizer.

Without a corpus it goes by the order of the vocabulary and Zipf's law (Zipf 1949, "Human behavior and the principle of
least effort"): the k-th most frequent word occurs 1/k as often as the first. Vocabularies are learned from counts and
mostly stand in their order: the words of BERT and the pieces of Unigram by frequency, those of BPE as merged. E-PUR
takes the logarithm, so a factor of two matters little. docs/frequencies.md compares this with real counts.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FineMixingError

if TYPE_CHECKING:
    import datasets

REFERENCE_CORPUS_SIZE = 1.24e9
"""Pieces in the corpus that E-PUR's floor of 20 is meant for; all counts are rescaled to it."""


def token_frequencies(
    tokenizer,
    source: "str | os.PathLike | Mapping[str, float] | datasets.Dataset | None" = None,
) -> np.ndarray:
    """Expected count of each token in a corpus of `REFERENCE_CORPUS_SIZE` pieces.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The model's tokenizer; left as it was, truncation and padding included.
        source (`str`, `os.PathLike`, `Mapping` or `datasets.Dataset`, *optional*):
            Where the counts come from: a `.txt` file (UTF-8, one document a line, streamed), a `.json` file or mapping
            `{token: count}` with tokens spelled as in the vocabulary (unknown ones are ignored), or a dataset, all of
            whose string columns are counted. By default Zipf's law over the order of the vocabulary: of the tokens
            that are not special, the k-th by id occurs in proportion to 1/k, whatever it is. Of a vocabulary of 30,000
            the last then occurs 3,800 times, and 20, where E-PUR's score has its floor, is reached by none of fewer
            than four million: the floor is for counts, which tell that a token is rare.

    Returns:
        `np.ndarray`: Counts by token id, float64, shape `[largest id + 1]`, summing to `REFERENCE_CORPUS_SIZE`.
        Special tokens and tokens never seen are 0.

    Raises:
        [`FineMixingError`]: The tokenizer is not a fast one, the source cannot be read or holds nothing to count.
    """
    if not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__
        raise FineMixingError(f"{kind} is not a fast tokenizer: load the model's tokenizer.json with AutoTokenizer")
    backend, vocabulary = tokenizer.backend_tokenizer, tokenizer.get_vocab()
    size = max(vocabulary.values(), default=-1) + 1
    special = [i for i in tokenizer.all_special_ids if i < size]
    if source is None:
        counts = np.zeros(size)
        ordinary = np.setdiff1d(list(vocabulary.values()), special)
        counts[ordinary] = 1 / np.arange(1, len(ordinary) + 1)
    else:
        counts = _counts(backend, source, vocabulary, size)
        counts[special] = 0.0
        if not counts.any():
            raise FineMixingError(
                "the frequency source holds no token of this tokenizer but special ones: give another"
            )
    return counts * (REFERENCE_CORPUS_SIZE / max(counts.sum(), 1.0))


def _counts(backend, source, vocabulary: dict[str, int], size: int) -> np.ndarray:
    if hasattr(source, "column_names"):
        return _count(backend, _dataset_texts(source), size)
    if isinstance(source, Mapping):
        return _from_table(source, vocabulary, size, "the mapping given as frequency source")
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), backend, vocabulary, size)
    kind = type(source).__name__
    raise FineMixingError(f"a {kind} is no frequency source: give a Dataset, a .txt or .json path, or counts")


@contextmanager
def _untruncated(backend) -> Iterator[None]:
    # The caller goes on using this Rust tokenizer; a copy would cost half a second for a large vocabulary
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _count(backend, texts: Iterable[str], size: int) -> np.ndarray:
    """Occurrences of each id: `[size]`."""
    counts, texts = np.zeros(size), iter(texts)
    try:
        with _untruncated(backend):
            while batch := list(itertools.islice(texts, 512)):
                pieces = (encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False))
                counts += np.bincount(np.fromiter(itertools.chain.from_iterable(pieces), np.int64), minlength=size)
    except Exception as error:
        if type(error) is not Exception:  # all that tokenizers says of a word that it has no token for
            raise
        raise FineMixingError(
            f"the tokenizer has no token for what is not in its vocabulary, and the frequency source holds such words "
            f"({' '.join(str(error).split())[:100]}): give counts by token (.json)"
        ) from error
    return counts


def _from_file(path: Path, backend, vocabulary: dict[str, int], size: int) -> np.ndarray:
    if path.suffix not in (".json", ".txt"):
        raise FineMixingError(f"frequency source {path} is neither .txt nor .json: rename or convert it")
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                return _from_table(json.load(file), vocabulary, size, f"frequency source {path}")
            return _count(backend, (line.rstrip("\n") for line in file), size)
    except OSError as error:
        raise FineMixingError(f"frequency source {path} cannot be read ({error.strerror}): check the path") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "text"
        raise FineMixingError(f"frequency source {path} is not {kind} in UTF-8 ({error}): convert it") from error


def _from_table(table: Mapping[str, float], vocabulary: dict[str, int], size: int, where: str) -> np.ndarray:
    if not isinstance(table, Mapping):
        raise FineMixingError(f"{where} holds a {type(table).__name__}: write counts as {{token: count}}")
    known = [token for token in table if token in vocabulary]
    if not known:
        raise FineMixingError(f"{where} shares no token with this tokenizer: spell them as in its vocabulary")
    try:
        values = np.array([table[token] for token in known], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FineMixingError(f"{where} has counts that are not numbers ({error}): mend them") from error
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        token = known[int(bad.argmax())]
        raise FineMixingError(f"{where} counts {token!r} {table[token]} times: counts are finite and at least 0")
    counts = np.zeros(size)
    counts[[vocabulary[token] for token in known]] = values
    return counts


def _dataset_texts(dataset) -> Iterator[str]:
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        kind = type(dataset).__name__
        raise FineMixingError(f"a {kind} is no frequency source: give one split of it, a datasets.Dataset")
    columns = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    if not columns:
        raise FineMixingError(f"the frequency source has no string column, only {list(features)}: give one with text")
    batches = dataset.select_columns(columns).iter(batch_size=512)
    return (text for batch in batches for column in columns for text in batch[column] if text is not None)
