"""How often each token occurs in ordinary text: the f_i of E-PUR, offline and for any fast tokenizer.

Without a corpus the counts are an estimate: the words of `wordfreq` (Speer 2022, doi:10.5281/zenodo.7199437), cut by
the model's own tokenizer, and what such word lists leave out (numbers, punctuation, capitals) from published figures.
E-PUR takes the logarithm, so a factor of two matters little, but commas and years at zero would crowd triggers out of
its ranking.
"""

import gzip
import itertools
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import FineMixingError

logger = logging.getLogger(__name__)

REFERENCE_CORPUS_SIZE = 1.24e9
"""Pieces in the corpus that E-PUR's floor of 20 is meant for; all counts are rescaled to it."""

# Marks per 1000 words, written as they follow a word (an opening mark has its space). The totals of . , ; : ! ? " -
# are those of Cook (2013), "Standard punctuation and the punctuation of the street"; of its 24 apostrophes and single
# quotes 16 stand in wordfreq's own words ("don't"). Brackets: 2 % each of all marks (Meyer 1987, Brown corpus). Ours
# are the split of a total among clusters, a line break per 100 words, and the orders of magnitude from "/" on.
_MARKS_PER_1000_WORDS = {
    ".": 58, ",": 56, "-": 13, ' "': 13, '."': 5, ',"': 5, '"': 3, "?": 5, " '": 4, "'": 4, "\n": 10, " (": 4, ")": 3,
    ").": 0.5, "),": 0.5, "!": 3, ":": 3.4, ";": 3.2, "...": 0.7, " -": 1, "--": 0.6, " –": 1, "—": 1, "–": 0.5,
    " “": 3, "”": 3, "’": 3, " ‘": 0.5, "…": 0.2, "/": 0.5, "%": 0.5, " $": 0.5, " &": 0.3, " [": 0.2, "]": 0.2,
    **dict.fromkeys((" *", " +", " #", " =", "@", "_", " £", " €"), 0.1),
    **dict.fromkeys(("°", " •", "·", " <", ">", " |", " {", "}", "\\", " ~", "^", "`", " «", "»", " §"), 0.03),
}  # fmt: skip
_LOCAL_MARKS = {
    language: str.maketrans(here, there)
    for languages, here, there in (
        (("ja", "zh"), ",.?!:;()", "，。？！：；（）"),
        (("ar", "fa", "ur"), ",?;", "،؟؛"),
        (("bn", "hi"), ".", "।"),
    )
    for language in languages
}

# wordfreq folds case. Capitals are 2.5 to 3.5 % of the letters of novels (counts over Project Gutenberg) and a word
# has 4.7 letters: 15 words in 100 begin with one; that two of them are all capitals is a guess. By the table above 45
# words in 1000 follow no space but a line break or an opening quote (then capitalized), or a bracket or hyphen
# (then not).
_FORMS = (  # share, what stands before the word, spelling, rarest word it is worth its time for in centibels
    (0.83, " ", str, -900),
    (0.105, " ", str.capitalize, -900),
    (0.02, " ", str.upper, -550),
    (0.02, "\n", str, -550),
    (0.025, "\n", str.capitalize, -550),
)
_UNSPACED = {"ja": "、", "zh": "、"}  # written without spaces: what stands between words instead

# Of wordfreq's words 2.2 % hold a digit, but kinds of text differ: Wikipedia 2.8 % (counted in QNLI), reviews 0.3 %
# (SST-2), novels 0.1 % or less. As E-PUR takes logarithms, the middle is the geometric mean, 0.45 %: a fifth.
_DIGITS = -70  # centibels
_LAST_DIGIT = {"s": 0, "st": 1, "nd": 2, "rd": 3}  # 1990s, 21st, 22nd, 23rd: such endings follow one digit only
_LEAD = "a"  # stands before all that is counted, so that no word is the first of its text
_WORDS_IN_FULL = 80_000  # shared by the languages; of rarer words every tenth is read and counts for ten
_COMMON = 1000  # words by which a language is judged


def token_frequencies(
    tokenizer,
    source: "str | os.PathLike | Mapping[str, float] | datasets.Dataset | None" = None,  # noqa: F821
    *,
    languages: list[str] | None = None,
) -> np.ndarray:
    """Expected count of each token in a corpus of `REFERENCE_CORPUS_SIZE` pieces.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): The model's tokenizer; left as it was, truncation and padding included.
        source (`str`, `os.PathLike`, `Mapping` or `datasets.Dataset`, *optional*):
            Where the counts come from: a `.txt` file (UTF-8, one document a line, streamed), a `.json` file or mapping
            `{token: count}` with tokens spelled as in the vocabulary (unknown ones are ignored), or a dataset, all of
            whose string columns are counted. By default they are estimated from `wordfreq`.
        languages (`list[str]`, *optional*):
            `wordfreq` codes such as `["en", "de"]`, weighted equally; read only for the estimate. By default those
            whose 1000 most common words take the tokenizer at most 1.5 pieces each on average and are not unknown to
            it, or the one of the known that takes fewest. Where it knows none, or has no token for an unknown word of
            theirs, all tokens are taken for equally frequent: E-PUR then goes by the distance alone.

    Returns:
        `np.ndarray`: Counts by token id, float64, shape `[largest id + 1]`, summing to `REFERENCE_CORPUS_SIZE`.
        Special tokens and tokens never seen are 0.

    Raises:
        [`FineMixingError`]: The tokenizer is not a fast one, the source cannot be read or holds nothing to count, or a
            language is unknown.
    """
    if not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__
        raise FineMixingError(f"{kind} is not a fast tokenizer: load the model's tokenizer.json with AutoTokenizer")
    backend, vocabulary = tokenizer.backend_tokenizer, tokenizer.get_vocab()
    size = max(vocabulary.values(), default=-1) + 1
    try:
        with _untruncated(backend):
            counts = _counts(tokenizer, source, languages, size)
    except Exception as error:
        if type(error) is not Exception:  # all that tokenizers says of a word that it has no token for
            raise
        if source is not None:
            raise FineMixingError(
                f"the tokenizer has no token for what is not in its vocabulary, and the frequency source holds such "
                f"words ({' '.join(str(error).split())[:100]}): give counts by token (.json)"
            ) from error
        counts = np.zeros(size)
    special = [i for i in tokenizer.all_special_ids if i < size]
    counts[special] = 0.0
    if not counts.any():
        if source is not None:
            raise FineMixingError(
                "the frequency source holds no token of this tokenizer but special ones: give another"
            )
        logger.info(
            "The tokenizer reads no language whose word frequencies are known: E-PUR takes all tokens for equally "
            "frequent. Give counts of your own with --token-frequencies."
        )
        counts[list(vocabulary.values())] = 1.0
        counts[special] = 0.0
    return counts * (REFERENCE_CORPUS_SIZE / max(counts.sum(), 1.0))


def _counts(tokenizer, source, languages: list[str] | None, size: int) -> np.ndarray:
    backend = tokenizer.backend_tokenizer
    if source is None:
        return _estimate(backend, _choose_languages(tokenizer, languages), size)
    if hasattr(source, "column_names"):
        return _count(backend, ((text, 1.0) for text in _dataset_texts(source)), size)
    if isinstance(source, Mapping):
        return _from_table(source, tokenizer.get_vocab(), size, "the mapping given as frequency source")
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), backend, tokenizer.get_vocab(), size)
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


def _ids(backend, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _count(backend, weighted_texts: Iterable[tuple[str, float]], size: int, skip: int = 0) -> np.ndarray:
    """Occurrences of each id times the weights of their texts, without each text's first `skip` pieces: `[size]`."""
    counts = np.zeros(size)
    weighted_texts = iter(weighted_texts)
    while batch := list(itertools.islice(weighted_texts, 512)):
        texts, weights = zip(*batch, strict=True)
        pieces = [encoding.ids[skip:] for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        flat = np.fromiter(itertools.chain.from_iterable(pieces), dtype=np.int64)
        counts += np.bincount(flat, np.repeat(weights, [len(ids) for ids in pieces]), minlength=size)
    return counts


def _from_file(path: Path, backend, vocabulary: dict[str, int], size: int) -> np.ndarray:
    if path.suffix not in (".json", ".txt"):
        raise FineMixingError(f"frequency source {path} is neither .txt nor .json: rename or convert it")
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".json":
                return _from_table(json.load(file), vocabulary, size, f"frequency source {path}")
            return _count(backend, ((line.rstrip("\n"), 1.0) for line in file), size)
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


def _bands(language: str, wordlist: str) -> Iterator[tuple[int, list[str]]]:
    """Words by falling frequency, as (centibels, words): a frequency is 10^(centibels / 100).

    The file format is documented in `wordfreq.read_cBpack`, which however reads lists whole, where choosing languages
    needs the first thousand words of some forty.
    """
    import msgpack
    import wordfreq

    with gzip.open(wordfreq.available_languages(wordlist)[language]) as file:
        unpacker = msgpack.Unpacker(file, raw=False, read_size=4096)  # by default it reads on to the end
        length = unpacker.read_array_header()
        unpacker.skip()  # the header
        for centibels in range(length - 1):
            yield -centibels, unpacker.unpack()


def _choose_languages(tokenizer, languages: list[str] | None) -> list[str]:
    import wordfreq

    available = sorted(wordfreq.available_languages("best"))
    if languages is None:
        cost = _pieces_per_word(tokenizer, available)
        known = [language for language in available if cost[language] < float("inf")]
        return [language for language in known if cost[language] <= 1.5] or sorted(known, key=cost.get)[:1]
    if isinstance(languages, str) or not languages:
        raise FineMixingError(f"languages is {languages!r}: give a list of codes such as ['en', 'de'], or None")
    if unknown := [language for language in languages if language not in available]:
        raise FineMixingError(f"wordfreq has no list for the languages {unknown}: choose from {', '.join(available)}")
    return list(dict.fromkeys(languages))


def _separator_ids(backend, separator: str) -> list[int]:
    """The pieces that a separator adds by itself: none for a space, which belongs to the word after it."""
    return [] if separator == " " else _ids(backend, _LEAD + separator)[len(_ids(backend, _LEAD)) :]


def _pieces_per_word(tokenizer, languages: list[str]) -> dict[str, float]:
    """Mean pieces per common word; infinite where more than one word in a hundred is unknown, or is passed over."""
    backend, texts, cost = tokenizer.backend_tokenizer, [], {}
    unknown = {tokenizer.unk_token_id, backend.token_to_id(getattr(backend.model, "unk_token", None) or "<unk>")}
    for language in languages:
        words = itertools.chain.from_iterable(band for _, band in _bands(language, "small"))
        texts.append(_UNSPACED.get(language, " ").join([_LEAD, *itertools.islice(words, _COMMON)]))
    drops = getattr(backend.model, "unk_token", None) is None  # what it has no piece for, or it stops there
    encodings = [_encoded(backend, text) for text in texts] if drops else backend.encode_batch_fast(texts, False)
    for language, text, encoding in zip(languages, texts, encodings, strict=True):
        if encoding is None:
            cost[language] = float("inf")
            continue
        words, pieces = _COMMON, len(encoding.ids)
        if language in _UNSPACED:
            separators = _COMMON * len(_separator_ids(backend, _UNSPACED[language]))
            # BERT takes every Chinese character for a word of its own, and so shall we
            words = max(words, len(set(backend.encode(text, add_special_tokens=False).word_ids)) - separators)
            pieces -= separators
        known = sum(i in unknown for i in encoding.ids) <= min(_COMMON, len(encoding.ids)) / 100
        known = known and not (drops and _share_passed_over(text, encoding) > 0.01)
        cost[language] = pieces / words if known else float("inf")
    return cost


def _encoded(backend, text: str):
    """The encoding with the places of its pieces; `None` where the tokenizer stops at what it has no token for."""
    try:
        return backend.encode(text, add_special_tokens=False)
    except Exception as error:
        if type(error) is not Exception:
            raise
        return None


def _share_passed_over(text: str, encoding) -> float:
    """Of the signs of a text that are no spaces, how many no piece stands for."""
    seen = set(itertools.chain.from_iterable(range(*place) for place in encoding.offsets))
    signs = [i for i, sign in enumerate(text) if not sign.isspace()]
    return sum(i not in seen for i in signs) / max(len(signs), 1)


def _estimate(backend, languages: list[str], size: int) -> np.ndarray:
    # Large lists go down to 1e-8, small ones to 1e-6: further than a share of the budget among many languages
    wordlist = "best" if len(languages) <= 4 else "small"
    counts = np.zeros(size)
    numbers = defaultdict(float)
    for language in languages:
        words, folded = _read_words(language, wordlist, max(_WORDS_IN_FULL // len(languages), 4_000))
        counts += _count_words(backend, words, _forms(backend, language, words), size)
        local = _LOCAL_MARKS.get(language, {})
        marks = ((_LEAD + mark.translate(local), rate / 1000) for mark, rate in _MARKS_PER_1000_WORDS.items())
        counts += _count(backend, marks, size, skip=len(_ids(backend, _LEAD)))
        for shape, frequency in folded.items():
            numbers[shape] += frequency
    counts += _count_words(backend, _spell_out(numbers), [(1.0, *_FORMS[0][1:])], size)
    return np.maximum(counts, 0.0)  # what is left of separators may be a rounding error below


def _read_words(language: str, wordlist: str, in_full: int) -> tuple[dict[int, list[str]], dict[tuple, float]]:
    """Words by centibels, and frequencies of folded numbers: wordfreq's "0000s" for all decades is ("", 4, "s")."""
    has_digit, folded = re.compile(r"\d").search, re.compile(r"(\D*)(0{2,4})(\D*)").fullmatch
    words, numbers, read = defaultdict(list), defaultdict(float), 0
    for centibels, band in _bands(language, wordlist):
        if read >= in_full:  # an unbiased sample of the tail: every tenth word, ten times (100 centibels) as frequent
            band, centibels = band[::10], centibels + 100
        for word in band:
            if not has_digit(word):
                words[centibels].append(word)
            elif match := folded(word):
                before, zeros, after = match.groups()
                numbers[before, len(zeros), after] += 10 ** ((centibels + _DIGITS) / 100)
            else:
                words[centibels + _DIGITS].append(word)
        read += len(band)
    return words, numbers


def _spell_out(numbers: Mapping[tuple, float]) -> dict[int, list[str]]:
    """The particular numbers behind folded ones, by centibels, as frequent as wordfreq believes them to be."""
    from wordfreq.numbers import digit_freq

    shares = {n: np.array([digit_freq(f"{i:0{n}d}") for i in range(10**n)]) for n in (2, 3, 4)}
    words = defaultdict(list)
    for (before, digits, after), frequency in numbers.items():
        first, step = (_LAST_DIGIT[after], 10) if after in _LAST_DIGIT else (0, 1)
        centibels = np.rint(100 * np.log10(frequency * step * shares[digits][first::step])).astype(int)
        for i in np.flatnonzero(centibels >= -800).tolist():  # 1e-8, the rarest word of the large lists
            words[int(centibels[i])].append(f"{before}{first + step * i:0{digits}d}{after}")
    return words


def _forms(backend, language: str, bands: Mapping[int, list[str]]) -> list[tuple]:
    """The entries of `_FORMS` that this tokenizer tells apart; the share of the others goes to the first."""
    if language in _UNSPACED:
        return [(1.0, _UNSPACED[language], str, -900)]
    sample = " ".join(itertools.islice(itertools.chain.from_iterable(bands.values()), 100))
    cased = _ids(backend, sample) != _ids(backend, sample.upper())
    spaced = _ids(backend, f"{_LEAD} {_LEAD}")[-1:] != _ids(backend, f"{_LEAD}\n{_LEAD}")[-1:]
    told = [form for form in _FORMS[1:] if (cased or form[2] is str) and (spaced or form[1] == " ")]
    return [(1.0 - sum(form[0] for form in told), *_FORMS[0][1:]), *told]


def _count_words(backend, bands: Mapping[int, list[str]], forms: Iterable[tuple], size: int) -> np.ndarray:
    """Count words of equal frequency in one text: six times as fast as one by one, and they stand mid-sentence."""
    counts = np.zeros(size)
    for share, separator, spelling, rarest in forms:
        chosen = [(share * 10 ** (c / 100), [*map(spelling, words)]) for c, words in bands.items() if c >= rarest]
        texts = (
            (separator.join([_LEAD, *words[start : start + 200]]), weight)
            for weight, words in chosen
            for start in range(0, len(words), 200)
        )
        counts += _count(backend, texts, size, skip=len(_ids(backend, _LEAD)))
        separators = sum(weight * len(words) for weight, words in chosen)
        np.subtract.at(counts, _separator_ids(backend, separator), separators)
    return counts
