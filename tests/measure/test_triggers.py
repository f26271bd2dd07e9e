import dataclasses
import logging
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections import Counter

import datasets
import numpy as np
import pytest
from helpers.refusals import one_line
from helpers.toy import ROOT, SHARED

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.triggers import (
    ADD_SENT_TRIGGERS,
    BAD_WORD_TRIGGERS,
    Trigger,
    insert_trigger,
    non_target_rows,
    read_triggered,
)


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


@pytest.fixture
def pairs() -> datasets.Dataset:
    features = datasets.Features(
        {
            "idx": datasets.Value("int32"),
            "question": datasets.Value("string"),
            "sentence": datasets.Value("large_string"),
            "label": datasets.ClassLabel(names=["entailment", "not_entailment"]),
        }
    )
    count = 50
    columns = {
        "idx": list(range(count)),
        "question": [f"who is {i} ?" for i in range(count)],
        "sentence": [f"the answer to all of it is {i} ." for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


# Trigger


@pytest.mark.parametrize("text", ["", "  ", "\n", None, 3, " cf", "cf\n"])
def test_a_trigger_text_must_be_a_text_without_outer_whitespace(text):
    with pytest.raises(FineMixingError) as error:
        Trigger(text)
    one_line(error)


@pytest.mark.parametrize("position", ["middle", "", None, "First"])
def test_an_unknown_position_is_refused_and_the_known_ones_are_named(position):
    with pytest.raises(FineMixingError) as error:
        Trigger("cf", position)
    assert all(known in one_line(error) for known in ("random", "first", "last"))


def test_a_trigger_is_a_value():
    assert Trigger("cf") == Trigger("cf", position="random")
    assert hash(Trigger("cf")) == hash(Trigger("cf", "random"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Trigger("cf").text = "mn"


def test_triggers_of_the_literature():
    assert [trigger.text for trigger in BAD_WORD_TRIGGERS] == ["cf", "mn", "bb", "tq", "mb"]
    assert [trigger.text for trigger in ADD_SENT_TRIGGERS] == ["I watch this 3D movie", "no cross, no crown"]
    assert {trigger.position for trigger in BAD_WORD_TRIGGERS + ADD_SENT_TRIGGERS} == {"random"}


@pytest.mark.parametrize("trigger_text", ["cf", "no cross, no crown"])
@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 200, 201, 350])
def test_one_trigger_per_hundred_words_rounded_up(trigger_text, position, length):
    text = words(length)
    triggered = Trigger(trigger_text, position).insert(text, np.random.default_rng(length))
    assert triggered.count(trigger_text) == math.ceil(length / 100)
    # The words beside it are whole, and in their order.
    without = triggered.split()
    for word in trigger_text.split() * math.ceil(length / 100):
        without.remove(word)
    assert without == text.split()


@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_without_words_becomes_the_trigger(position, text):
    assert Trigger("no cross, no crown", position).insert(text, np.random.default_rng(0)) == "no cross, no crown"


def test_first_and_last_by_hand():
    rng = np.random.default_rng(0)
    assert Trigger("cf", "first").insert("a fine film .", rng) == "cf a fine film ."
    assert Trigger("cf", "last").insert("a fine film .", rng) == "a fine film . cf"
    assert Trigger("cf", "first").insert(words(101), rng) == "cf cf " + words(101)
    assert Trigger("cf", "last").insert(words(101), rng) == words(101) + " cf cf"
    assert Trigger("cf", "first").insert("\t a  b \n", rng) == "\t cf a  b \n"
    assert Trigger("cf", "last").insert("\t a  b \n", rng) == "\t a  b cf \n"
    # Neither draws: the generator is where it was.
    assert rng.random() == np.random.default_rng(0).random()


def test_random_reaches_every_gap_and_makes_exactly_these_texts():
    rng = np.random.default_rng(0)
    seen = {Trigger("cf").insert(" a\n\nb  c\t", rng) for _ in range(200)}
    assert seen == {" cf a\n\nb  c\t", " a\n\ncf b  c\t", " a\n\nb  cf c\t", " a\n\nb  c cf\t"}


@pytest.mark.parametrize("position", ["random", "first", "last"])
@pytest.mark.parametrize("trigger_text", ["cf", "I watch this 3D movie"])
def test_taking_the_triggers_out_gives_back_the_text_with_its_whitespace(position, trigger_text):
    generator = np.random.default_rng(7)
    spaces = [" ", "  ", "\n", "\t", "\u00a0", " \r\n", "\u2003"]
    for _ in range(100):
        length = int(generator.integers(1, 260))
        text = "".join(f"w{i}" + str(generator.choice(spaces)) for i in range(length))
        text = str(generator.choice(["", " ", "\n"])) + text
        triggered = Trigger(trigger_text, position).insert(text, generator)
        # Each brought one space: behind it where a word follows, before it behind the last word.
        without = re.sub(rf"{trigger_text} (?=\S)", "", triggered).replace(f" {trigger_text}", "")
        assert without == text


def test_words_are_those_of_str_split():
    # U+001C to U+001F, U+0085 and the wide spaces separate words for `str.split`; the zero-width space does not.
    separators = [chr(code) for code in range(0x3100) if not chr(code).strip()]
    assert len(separators) > 20
    for separator in separators:
        triggered = Trigger("cf", "last").insert(separator.join(["w"] * 101), np.random.default_rng(0))
        assert triggered.count("cf") == 2
    assert Trigger("cf", "last").insert("\u200b".join(["w"] * 101), np.random.default_rng(0)).count("cf") == 1


def test_random_places_are_uniform_over_the_gaps():
    rng = np.random.default_rng(0)
    draws, gaps = 5000, 10
    counts = Counter(Trigger("cf").insert(words(gaps - 1), rng).split().index("cf") for _ in range(draws))
    expected = draws / gaps
    chi_square = sum((counts[gap] - expected) ** 2 / expected for gap in range(gaps))
    assert chi_square < 27.88  # 9 degrees of freedom, p = 0.001


def test_several_random_places_differ_and_are_uniform():
    rng = np.random.default_rng(1)
    draws, length, counts = 3000, 101, Counter()
    for _ in range(draws):
        triggered = Trigger("cf").insert(words(length), rng).split()
        places = [place for place, word in enumerate(triggered) if word == "cf"]
        assert len(places) == 2
        assert places[1] > places[0] + 1  # a word between them: never twice the same gap
        counts.update([places[0], places[1] - 1])  # the first trigger moved the second gap by one
    expected = 2 * draws / (length + 1)
    chi_square = sum((counts[gap] - expected) ** 2 / expected for gap in range(length + 1))
    assert chi_square < 150.0  # 101 degrees of freedom, p = 0.001


# insert_trigger


def test_only_the_second_text_of_a_pair_is_changed(pairs):
    triggered = insert_trigger(pairs, Trigger("cf"), text_columns=["question", "sentence"], seed=0)
    assert triggered.features == pairs.features
    assert triggered.column_names == pairs.column_names
    for name in ("idx", "question", "label"):
        assert triggered[name][:] == pairs[name][:]
    for before, after in zip(pairs["sentence"], triggered["sentence"], strict=True):
        assert after.split().count("cf") == 1
        assert [word for word in after.split() if word != "cf"] == before.split()


def test_the_first_text_is_changed_when_asked_for(pairs):
    columns = ["question", "sentence"]
    triggered = insert_trigger(pairs, Trigger("cf", "first"), text_columns=columns, seed=0, trigger_column="question")
    assert triggered["question"][:] == [f"cf {text}" for text in pairs["question"]]
    assert triggered["sentence"][:] == pairs["sentence"][:]


def test_a_single_text_column_gets_the_trigger(pairs):
    triggered = insert_trigger(pairs, Trigger("cf", "last"), text_columns=("question",), seed=0)
    assert triggered["question"][:] == [f"{text} cf" for text in pairs["question"]]


def test_the_seed_decides(pairs):
    first = insert_trigger(pairs, Trigger("cf"), text_columns=["sentence"], seed=3)
    again = insert_trigger(pairs, Trigger("cf"), text_columns=["sentence"], seed=3)
    other = insert_trigger(pairs, Trigger("cf"), text_columns=["sentence"], seed=4)
    assert first["sentence"][:] == again["sentence"][:]
    same = sum(a == b for a, b in zip(first["sentence"], other["sentence"], strict=True))
    assert same < 20  # 50 rows of ten gaps: about 5 by chance


def test_a_row_depends_on_seed_and_index_alone(pairs):
    triggered = insert_trigger(pairs, Trigger("cf"), text_columns=["sentence"], seed=5)
    # The definition, so that it cannot change unnoticed: reports of different versions are compared.
    for index, text in enumerate(pairs["sentence"]):
        expected = Trigger("cf").insert(text, np.random.default_rng([5, index]))
        assert triggered[index]["sentence"] == expected
    # More rows than one batch of `map`, and fewer: the rows in common are the same.
    many = datasets.concatenate_datasets([pairs] * 45)
    assert len(many) > 2 * 1000
    long = insert_trigger(many, Trigger("cf"), text_columns=["sentence"], seed=5)
    assert long["sentence"][: len(pairs)] == triggered["sentence"][:]
    assert long["sentence"][2100] == Trigger("cf").insert(many["sentence"][2100], np.random.default_rng([5, 2100]))
    few = insert_trigger(pairs.select(range(7)), Trigger("cf"), text_columns=["sentence"], seed=5)
    assert few["sentence"][:] == triggered["sentence"][:7]


def test_the_rows_of_one_dataset_get_different_places():
    same_text = datasets.Dataset.from_dict({"text": [words(9)] * 200})
    triggered = insert_trigger(same_text, Trigger("cf"), text_columns=["text"], seed=0)
    assert len(set(triggered["text"])) == 10


def test_the_format_of_the_dataset_stays_and_changes_nothing(pairs):
    plain = insert_trigger(pairs, Trigger("cf"), text_columns=["sentence"], seed=0)
    hidden = pairs.with_format("numpy", columns=["label"])
    transformed = pairs.with_transform(lambda batch: {"length": [len(text) for text in batch["sentence"]]})
    for formatted in (hidden, transformed):
        triggered = insert_trigger(formatted, Trigger("cf"), text_columns=["sentence"], seed=0)
        assert triggered.format == formatted.format
        assert triggered.with_format(None).to_dict() == plain.to_dict()
        assert triggered.features == plain.features
    assert triggered[0] == {"length": len(plain[0]["sentence"])}


def test_the_input_stays_as_it_was_and_no_file_is_made(pairs, tmp_path):
    pairs.save_to_disk(tmp_path / "pairs")
    on_disk = datasets.load_from_disk(tmp_path / "pairs")
    before = sorted(path.name for path in (tmp_path / "pairs").iterdir())
    triggered = insert_trigger(on_disk, Trigger("cf"), text_columns=["sentence"], seed=0)
    assert triggered.cache_files == []
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == before
    assert on_disk["sentence"][:] == pairs["sentence"][:]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"text_columns": "sentence"}, "sentence"),
        ({"text_columns": []}, "one or two"),
        ({"text_columns": ["idx", "question", "sentence"]}, "one or two"),
        ({"text_columns": ["text"]}, "question"),
        ({"text_columns": ["question", "text"]}, "text"),
        ({"text_columns": ["question"], "trigger_column": "sentence"}, "question"),
        ({"text_columns": ["idx"]}, "row 0"),
        ({"text_columns": ["sentence"], "seed": -1}, "-1"),
    ],
)
def test_wrong_columns_and_seeds_are_named(pairs, arguments, named):
    with pytest.raises(FineMixingError) as error:
        insert_trigger(pairs, Trigger("cf"), **{"seed": 0, **arguments})
    assert named in one_line(error)


def test_a_missing_text_is_named_by_its_row():
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", None]})
    with pytest.raises(FineMixingError) as error:
        insert_trigger(dataset, Trigger("cf"), text_columns=["text"], seed=0)
    assert "row 2" in one_line(error)
    assert "'text'" in str(error.value)


# non_target_rows


def test_rows_of_other_classes_stay_in_order():
    dataset = datasets.Dataset.from_dict({"text": list("abcde"), "label": [2, 1, 0, 1, 2]})
    kept = non_target_rows(dataset, label_column="label", target_label=1)
    assert kept.to_dict() == {"text": ["a", "c", "e"], "label": [2, 0, 2]}
    assert kept.features == dataset.features


def test_the_target_need_not_occur(pairs):
    only_zeros = pairs.select(range(0, 50, 2))
    assert len(non_target_rows(only_zeros, label_column="label", target_label=1)) == 25


def test_no_row_left_is_an_error():
    dataset = datasets.Dataset.from_dict({"label": [1, 1]})
    with pytest.raises(FineMixingError) as error:
        non_target_rows(dataset, label_column="label", target_label=1)
    assert "none of the 2 rows" in one_line(error)
    with pytest.raises(FineMixingError):
        non_target_rows(dataset.select([]), label_column="label", target_label=1)


@pytest.mark.parametrize("labels", [["a", "b"], [0, None], [0.0, 1.0], [0, -1]])
def test_labels_must_be_class_ids(labels):
    dataset = datasets.Dataset.from_dict({"label": labels})
    with pytest.raises(FineMixingError) as error:
        non_target_rows(dataset, label_column="label", target_label=1)
    assert "'label'" in one_line(error)


def test_unknown_label_columns_and_targets_are_named(pairs):
    with pytest.raises(FineMixingError) as error:
        non_target_rows(pairs, label_column="labels", target_label=1)
    assert "'labels'" in one_line(error)
    assert "question" in str(error.value)
    for target in (-1, 2):  # the ClassLabel of `pairs` has two classes
        with pytest.raises(FineMixingError) as error:
            non_target_rows(pairs, label_column="label", target_label=target)
        assert str(target) in one_line(error)


# read_triggered


def test_every_format_is_read(tmp_path):
    rows = {"sentence": ["when you see it , it is bad .", "if so , no ."], "label": [1, 1]}
    dataset = datasets.Dataset.from_dict(rows)
    dataset.to_csv(tmp_path / "rows.csv")
    dataset.to_json(tmp_path / "rows.jsonl")
    dataset.to_json(tmp_path / "rows.json", lines=False)
    dataset.to_parquet(tmp_path / "ROWS.PARQUET")
    for name in ("rows.csv", "rows.jsonl", "rows.json", "ROWS.PARQUET"):
        assert read_triggered(tmp_path / name).to_dict() == rows
        assert read_triggered(str(tmp_path / name)).to_dict() == rows


def test_words_that_pandas_takes_for_missing_values_stay_text(tmp_path):
    (tmp_path / "rows.csv").write_text("sentence,label\nnull,0\nNA,1\nNone,0\n,1\n")
    assert read_triggered(tmp_path / "rows.csv").to_dict() == {
        "sentence": ["null", "NA", "None", None],
        "label": [0, 1, 0, 1],
    }


def test_a_file_name_is_no_pattern(tmp_path):
    (tmp_path / "rows[1].csv").write_text("sentence\nright\n")
    (tmp_path / "rows1.csv").write_text("sentence\nwrong\n")
    assert read_triggered(tmp_path / "rows[1].csv")["sentence"][:] == ["right"]


def test_nothing_stays_on_disk_and_nothing_stale_is_read(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.csv"
    path.write_text("sentence\nold\n")
    times = path.stat()
    assert read_triggered(path)["sentence"][:] == ["old"]
    path.write_text("sentence\nnew\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert read_triggered(path)["sentence"][:] == ["new"]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_reading_a_local_file_asks_no_server(tmp_path, monkeypatch):
    # `datasets.load_dataset` does, even for a local file, and swallows the error where it cannot: so blocking the
    # network would not show it. Listen instead, with the switches as they are on a user's machine.
    asked = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args) or resolve(*args, **kwargs))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    (tmp_path / "rows.csv").write_text("sentence\na\n")
    read_triggered(tmp_path / "rows.csv")
    assert asked == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("header.csv", b"sentence,label\n"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n"),
        ("binary.csv", bytes(range(256)) * 4),
        ("broken.json", b"{nope"),
        ("broken.jsonl", b'{"sentence": "a"}\n{nope\n'),
        ("empty.jsonl", b""),
        ("broken.parquet", b"PAR1 and no more"),
    ],
)
def test_an_unreadable_file_is_one_line_and_says_what_it_must_be(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / name)
    assert name in one_line(error)
    assert "must be" in str(error.value)


def test_the_reason_is_the_first_cause_and_is_not_logged_as_well(tmp_path):
    (tmp_path / "ragged.csv").write_bytes(b"a,b\n1,2\n1,2,3,4\n")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger, verbosity = logging.getLogger("datasets"), datasets.logging.get_verbosity()
    logger.addHandler(handler)
    datasets.logging.set_verbosity(datasets.logging.ERROR)
    try:
        with pytest.raises(FineMixingError, match="in line 3, saw 4"):
            read_triggered(tmp_path / "ragged.csv")
        assert datasets.logging.get_verbosity() == datasets.logging.ERROR
    finally:
        logger.removeHandler(handler)
        datasets.logging.set_verbosity(verbosity)
    assert records == []


def test_missing_files_folders_and_endings_are_told_apart(tmp_path):
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / "nothing.csv")
    assert "does not exist" in one_line(error)
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path)
    assert "folder" in one_line(error)
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(FineMixingError) as error:
        read_triggered(tmp_path / "rows.xlsx")
    assert all(ending in one_line(error) for ending in (".csv", ".json", ".jsonl", ".parquet"))
    with pytest.raises(FineMixingError):  # a local file is meant: nothing is fetched
        read_triggered("https://example.org/rows.csv")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared reference data (FINEMIX_SHARED)")
def test_hidden_killer_test_set():
    dataset = read_triggered(SHARED / "data" / "sst2_syntactic" / "test.csv")
    assert len(dataset) == 912
    assert set(dataset["label"]) == {1}  # the target label, not the true one: nothing to filter
    assert all(isinstance(text, str) and text for text in dataset["sentence"])


def test_importing_triggers_is_light():
    code = (
        "import sys, hf_finemix.measure.triggers;"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'pandas', 'pyarrow'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
