import json
import os

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from helpers.toy import make_rows, make_tokenizer

from hf_finemix.errors import DataError, FineMixingError
from hf_finemix.measure.arguments import DataArguments, TestDataArguments
from hf_finemix.measure.clean_data import load_clean_data, load_test_data, tokenize
from hf_finemix.measure.tables import read_triggered

LABELS = {"negative": 0, "positive": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing of these tests stays in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder, **splits):
    """CSV files with the columns of the rows given for each split."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        Dataset.from_dict(rows).to_csv(folder / f"{split}.csv")
    return str(folder)


def numbered(count, start=0, **columns):
    """Rows with texts of their own and classes in turn."""
    return {"sentence": [f"text {start + i}" for i in range(count)], "label": [i % 2 for i in range(count)], **columns}


def load(dataset, labels=LABELS, **settings):
    return load_clean_data(DataArguments(dataset=str(dataset), **settings), labels)


def texts(rows, column="sentence"):
    return list(rows[column])


def refused(dataset, labels=LABELS, **settings) -> str:
    with pytest.raises(FineMixingError) as error:
        load(dataset, labels, **settings)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# Which rows serve for what


def test_the_three_splits_serve_as_named(data_folder):
    data = load(data_folder, num_clean_samples=20)
    assert [len(part) for part in (data.tuning, data.eval, data.test)] == [20, 80, 100]
    assert set(texts(data.tuning)) <= set(make_rows(120, 0)["sentence"])
    assert texts(data.eval) == make_rows(80, 1)["sentence"]
    assert texts(data.test) == make_rows(100, 2)["sentence"]
    assert list(data.test["label"]) == make_rows(100, 2)["label"]
    assert data.text_columns == ["sentence"]
    described = data.description
    assert described["rows"] == {"tuning": 20, "eval": 80, "test": 100}
    assert described["splits"] == {"tuning": "train (20 of 120)", "eval": "validation", "test": "test"}
    assert (described["text_columns"], described["label_column"]) == (["sentence"], "label")
    assert (described["id"], described["sha"]) == (str(data_folder), None)
    assert sorted(described["sha256"]) == ["test.csv", "train.csv", "validation.csv"]
    assert str(data) == (
        "tuning: 20 rows of train (20 of 120); eval: 80 rows of validation; test: 100 rows of test; text: sentence"
    )


def test_tuning_samples_are_balanced_and_follow_the_seed(tmp_path):
    rows = numbered(100)
    rows["label"] = [int(i >= 70) for i in range(100)]  # 70 and 30
    folder = write(tmp_path / "data", train=rows, validation=numbered(10, 100), test=numbered(10, 200))
    draws = [load(folder, num_clean_samples=40, sample_seed=seed).tuning for seed in (0, 0, 1)]
    assert texts(draws[0]) == texts(draws[1]) != texts(draws[2])
    assert all(sum(draw["label"]) == 20 for draw in draws)
    # A class that is used up does not keep the others from filling up.
    rest = load(folder, num_clean_samples=80).tuning
    assert (len(rest), sum(rest["label"])) == (80, 30)


def test_fewer_rows_than_asked_for_are_all_taken(tmp_path):
    folder = write(tmp_path / "data", train=numbered(10), validation=numbered(10, 100), test=numbered(10, 200))
    assert len(load(folder, num_clean_samples=64).tuning) == 10


def test_slices_of_splits(data_folder):
    data = load(
        data_folder,
        train_split="train[:20]",
        eval_split="validation[75%:]",
        test_split="test[10:30]",
        num_clean_samples=8,
    )
    assert set(texts(data.tuning)) <= set(make_rows(120, 0)["sentence"][:20])
    assert texts(data.eval) == make_rows(80, 1)["sentence"][60:]
    assert texts(data.test) == make_rows(100, 2)["sentence"][10:30]


def test_one_split_for_tuning_and_choosing_is_cut_in_two(data_folder):
    data = load(data_folder, train_split="validation", eval_split="validation", num_clean_samples=32)
    assert (len(data.tuning), len(data.eval), len(data.test)) == (32, 48, 100)
    assert not set(texts(data.tuning)) & set(texts(data.eval))
    # However many are asked for, a fifth stays for choosing.
    data = load(data_folder, train_split="validation", eval_split="validation", num_clean_samples=500)
    assert (len(data.tuning), len(data.eval)) == (64, 16)


def test_without_a_test_split_it_is_half_of_validation(tmp_path):
    folder = write(tmp_path / "data", train=numbered(30), validation=numbered(40, 100))
    data = load(folder, num_clean_samples=10)
    assert (len(data.tuning), len(data.eval), len(data.test)) == (10, 20, 20)
    assert set(texts(data.eval)) | set(texts(data.test)) == set(numbered(40, 100)["sentence"])
    assert texts(load(folder, sample_seed=1).test) != texts(data.test)


def test_an_unlabeled_test_split_counts_as_missing(tmp_path):
    unlabeled = numbered(20, 200, label=[-1] * 20)
    folder = write(tmp_path / "data", train=numbered(30), validation=numbered(40, 100), test=unlabeled)
    data = load(folder, num_clean_samples=10)
    assert (len(data.eval), len(data.test)) == (20, 20)
    assert "validation" in data.description["splits"]["test"]


def test_from_a_train_split_alone_all_three_are_cut(tmp_path):
    folder = write(tmp_path / "data", train=numbered(40))
    data = load(folder, num_clean_samples=10)
    parts = [set(texts(part)) for part in (data.tuning, data.eval, data.test)]
    assert [len(part) for part in parts] == [10, 15, 15]
    assert set.union(*parts) == set(numbered(40)["sentence"])


def test_texts_that_are_in_two_splits_leave_those_that_are_not_tested(tmp_path):
    train, validation = numbered(20), numbered(20, 100)
    train["sentence"][4] = validation["sentence"][4] = "text 204"  # in test as well
    validation["sentence"][:4] = train["sentence"][:4]
    folder = write(tmp_path / "data", train=train, validation=validation, test=numbered(10, 200))
    data = load(folder, num_clean_samples=19)
    assert len(data.tuning) == 19
    assert "text 204" not in texts(data.tuning) + texts(data.eval)
    assert texts(data.eval) == validation["sentence"][5:]
    assert texts(data.test) == numbered(10, 200)["sentence"]


def test_rows_without_text_or_label_serve_for_nothing(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = "".join(f"{split} {i},{i % 2}\n" for i in range(10))
        (folder / f"{split}.csv").write_text(f"sentence,label\n{rows},1\n,0\nno label,\n", encoding="utf-8")
    data = load(folder)
    assert [len(part) for part in (data.tuning, data.eval, data.test)] == [10, 10, 10]
    assert None not in texts(data.tuning) + texts(data.eval) + texts(data.test)


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ({"train_split": "test"}, "train split 'test'"),
        ({"eval_split": "test[:5]"}, "eval split 'test[:5]'"),
        ({"train_split": "train", "test_split": "train[:50%]"}, "test split 'train[:50%]'"),
    ],
)
def test_overlap_with_the_test_rows_is_refused(data_folder, splits, named):
    message = refused(data_folder, **splits)
    assert named in message
    assert "give disjoint splits" in message


# Labels


def test_labels_by_name_whatever_the_case(tmp_path):
    rows = numbered(10, label=["Positive", "NEGATIVE"] * 5)
    data = load(write(tmp_path / "data", train=rows, validation=numbered(4, 100), test=numbered(4, 200)))
    expected = {text: int(name == "Positive") for text, name in zip(rows["sentence"], rows["label"], strict=True)}
    assert dict(zip(texts(data.tuning), data.tuning["label"], strict=True)) == expected


@pytest.mark.parametrize("labels", [["0", "1"], [0.0, 1.0]])
def test_labels_as_text_or_as_whole_floats(tmp_path, labels):
    folder = tmp_path / "data"
    folder.mkdir()
    Dataset.from_dict(numbered(10, label=labels * 5)).to_parquet(folder / "test.parquet")
    rows, _ = load_test_data(TestDataArguments(dataset=str(folder)), LABELS)
    assert list(rows["label"]) == [0, 1] * 5


def test_class_labels_go_by_name_where_the_model_knows_the_names(tmp_path):
    """A data set and a model of NLI number the same names differently."""

    def labels_read(names, label2id):
        features = Features({"sentence": Value("string"), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"sentence": ["a", "b", "c", "d"], "label": [0, 1, 2, -1]}, features=features)
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        rows.to_parquet(folder / "test.parquet")
        return list(load_test_data(TestDataArguments(dataset=str(folder)), label2id)[0]["label"])

    model = {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2}
    assert labels_read(["entailment", "neutral", "contradiction"], model) == [2, 1, 0]
    # Names that say nothing leave the numbers as they are.
    assert labels_read(["yes", "perhaps", "no"], model) == [0, 1, 2]


@pytest.mark.parametrize("bad", [2, "angry", 0.5])
def test_a_label_that_is_no_class_is_refused(tmp_path, bad):
    folder = tmp_path / "data"
    folder.mkdir()
    label = [bad] * 9 + [type(bad)(1)]
    Dataset.from_dict(numbered(10, label=label)).to_json(folder / "train.jsonl")
    message = refused(folder)
    assert f"label {bad!r} in column 'label'" in message
    assert "0 = negative, 1 = positive" in message
    assert "split 'train'" in message


def test_one_class_is_refused(tmp_path):
    folder = write(tmp_path / "data", train=numbered(10, label=[1] * 10), validation=numbered(10, 100))
    message = refused(folder)
    assert "all 10 rows to tune on have the label 1" in message
    assert "two classes" in message


def test_too_few_samples_for_the_classes_are_refused(data_folder):
    assert "1 clean samples cannot cover 2 classes" in refused(data_folder, num_clean_samples=1)


# Columns


def test_pairs_of_texts(tmp_path):
    rows = {"premise": ["a", "b"] * 5, "hypothesis": [str(i) + " x" for i in range(10)], "label": [0, 1] * 5}
    folder = write(tmp_path / "data", train=rows, validation=rows | {"premise": ["c"] * 10})
    data = load(folder, num_clean_samples=4)
    assert data.text_columns == ["premise", "hypothesis"]
    assert data.tuning.column_names == ["premise", "hypothesis", "label"]
    # The order is the user's.
    data = load(folder, num_clean_samples=4, text_columns=["hypothesis", "premise"])
    assert data.text_columns == ["hypothesis", "premise"]


def test_columns_by_name(tmp_path):
    rows = {"id": ["x"] * 6, "note": ["n"] * 5 + ["m"], "review": list("abcdef"), "stars": [0, 1] * 3}
    folder = write(tmp_path / "data", train=rows)
    message = refused(folder)
    assert "no column 'label': there are id, note, review, stars" in message
    message = refused(folder, label_column="stars")
    assert "which columns are the text is not clear: there are id, note, review, stars" in message
    assert "text_columns" in message
    message = refused(folder, label_column="points")
    assert "no column 'points': there are id, note, review, stars" in message
    message = refused(folder, label_column="stars", text_columns=["text"])
    assert "no column 'text': there are id, note, review, stars" in message
    message = refused(folder, label_column="stars", text_columns=["stars"])
    assert "column 'stars' holds no text" in message
    data = load(folder, label_column="stars", text_columns=["review"], num_clean_samples=2)
    assert data.tuning.column_names == ["review", "label"]


# Files


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_one_file_of_each_kind(tmp_path, kind):
    rows, file = Dataset.from_dict(numbered(30)), tmp_path / f"rows [1].{kind}"
    getattr(rows, f"to_{kind.removesuffix('l')}")(file)
    data = load(file, num_clean_samples=10)
    assert [len(part) for part in (data.tuning, data.eval, data.test)] == [10, 10, 10]
    assert list(data.description["sha256"]) == [f"rows [1].{kind}"]


@pytest.mark.parametrize("in_a_folder", [True, False])
def test_words_that_look_like_missing_values_are_texts(tmp_path, in_a_folder):
    words = ["null", "None", "NA", "nan", "n/a", "", "text"]
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "test.csv"
    file.write_text("sentence,label\n" + "".join(f"{word},{i % 2}\n" for i, word in enumerate(words)))
    arguments = TestDataArguments(dataset=str(file.parent), test_split="test")
    if not in_a_folder:
        arguments = TestDataArguments(dataset=str(file), test_split="train")
    rows, columns = load_test_data(arguments, LABELS)
    assert columns == ["sentence"]
    assert texts(rows) == ["null", "None", "NA", "nan", "n/a", "text"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""),
        ("a.csv", "sentence,label\n"),
        ("a.csv", "sentence,label\n,\n"),
        ("a.csv", b"sentence,label\n\xff\xfe\x00,1\n"),
        ("a.csv", 'sentence,label\n"never closed,1\n'),
        ("a.json", "{nope"),
        ("a.json", "[]"),
        ("a.jsonl", ""),
        ("a.parquet", "not parquet"),
        ("a.txt", "plain text"),
    ],
)
@pytest.mark.parametrize("in_a_folder", [True, False])
def test_broken_and_empty_files(tmp_path, name, content, in_a_folder):
    file = tmp_path / "data" / name
    file.parent.mkdir()
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert str(file.parent) in refused(file.parent if in_a_folder else file)


def test_data_that_is_not_there(tmp_path):
    assert "--dataset" in refused("")
    for name in ("trian.csv", "no such folder"):
        assert "check the path" in refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert ".csv, .json, .jsonl, .parquet" in refused(tmp_path / "empty")
    assert "org/no-such-data is not a local folder and not on the Hub" in refused("org/no-such-data")


@pytest.mark.parametrize("role", ["train", "eval", "test"])
def test_a_split_that_is_named_must_be_there(data_folder, role):
    message = refused(data_folder, **{f"{role}_split": "vaildation[:50%]"})
    assert "no split 'vaildation[:50%]': there are train, validation, test" in message


@pytest.mark.parametrize("spec", ["train[:10%", "train[a:b]", "train[:200%]", "train[20:10]"])
def test_slices_that_are_none(data_folder, spec):
    assert repr(spec) in refused(data_folder, train_split=spec)


def test_a_folder_called_like_a_builder_is_a_folder(tmp_path, monkeypatch):
    """`load_dataset("csv")` would be the CSV reader."""
    write(tmp_path / "csv", train=numbered(40))
    monkeypatch.chdir(tmp_path)
    assert len(load("csv", num_clean_samples=10).tuning) == 10


def test_local_data_are_not_counted_on_a_server(tmp_path, monkeypatch):
    """`datasets` tells a server of each load of a CSV file, unless it is told not to."""
    from datasets.load import get_session

    calls = []
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(get_session().__class__, "head", lambda self, *args, **kwargs: calls.append(args))
    folder = write(tmp_path / "data", train=numbered(40))
    load(folder)
    load(os.path.join(folder, "train.csv"))
    assert calls == []
    datasets.load_dataset("csv", data_files={"train": os.path.join(folder, "train.csv")})
    assert calls, "this test no longer sees what it is to watch"


# The test split alone, and tokenizing


def test_the_test_split_alone(data_folder):
    rows, columns = load_test_data(TestDataArguments(dataset=str(data_folder), test_split="validation[:10]"), LABELS)
    assert texts(rows) == make_rows(80, 1)["sentence"][:10]
    assert columns == ["sentence"]
    with pytest.raises(DataError, match="no split 'dev': there are train, validation, test"):
        load_test_data(TestDataArguments(dataset=str(data_folder), test_split="dev"), LABELS)


def test_a_test_split_without_labels_is_refused(tmp_path):
    folder = write(tmp_path / "data", test=numbered(5, label=[-1] * 5))
    with pytest.raises(DataError, match="split 'test' has no labeled rows"):
        load_test_data(TestDataArguments(dataset=folder), LABELS)


def test_tokenize_cuts_and_keeps_labels():
    tokenizer = make_tokenizer()
    rows = Dataset.from_dict(
        {"first": ["good film", "bad " * 50], "second": ["the plot", "was dull"], "label": [1, 0]}
    )
    single = tokenize(rows, tokenizer, ["first"], 10)
    assert single["labels"][:] == [1, 0]
    assert single["input_ids"][0] == tokenizer("good film")["input_ids"]
    assert [len(ids) for ids in single["input_ids"]] == [4, 10]
    assert set(single.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    pairs = tokenize(rows, tokenizer, ["first", "second"], 10)
    assert pairs["input_ids"][0] == tokenizer("good film", "the plot")["input_ids"]
    assert pairs["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]
    assert len(pairs["input_ids"][1]) == 10


def test_the_description_is_json(data_folder):
    description = load(data_folder).description
    assert json.loads(json.dumps(description, allow_nan=False)) == description


def test_a_missing_eval_split_is_cut_to_a_thousand_rows(tmp_path):
    rows = {"sentence": [f"row {i}" for i in range(3000)], "label": [0, 1] * 1500}
    Dataset.from_dict(rows).to_csv(tmp_path / "train.csv")
    data = load_clean_data(DataArguments(dataset=str(tmp_path)), {"negative": 0, "positive": 1})
    assert data.description["rows"] == {"tuning": 64, "eval": 1000, "test": 1000}


def test_no_text_is_both_in_eval_and_in_test_where_one_is_cut_from_the_other(tmp_path):
    rows = {"sentence": [f"row {i % 40}" for i in range(200)], "label": [i % 2 for i in range(200)]}
    Dataset.from_dict(rows).to_csv(tmp_path / "validation.csv")
    Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}).to_csv(tmp_path / "train.csv")
    arguments = DataArguments(dataset=str(tmp_path), num_clean_samples=2)
    data = load_clean_data(arguments, {"negative": 0, "positive": 1})
    assert set(data.test["sentence"]).isdisjoint(data.eval["sentence"])


@pytest.mark.parametrize("role", ["train", "eval", "test"])
def test_a_slice_without_rows_is_refused(data_folder, role):
    with pytest.raises(DataError, match=r"the slice 'test\[5:5\]' holds no row"):
        load_clean_data(DataArguments(dataset=str(data_folder), **{f"{role}_split": "test[5:5]"}), LABELS)


def test_the_same_column_twice_is_no_pair(data_folder):
    with pytest.raises(DataError, match="names 'sentence' twice"):
        load_clean_data(DataArguments(dataset=str(data_folder), text_columns=["sentence", "sentence"]), LABELS)


# Columns that are no text


def pairs(count=24, first="a", second="b"):
    """Rows with two texts of their own."""
    rows = numbered(count)
    return {first: rows["sentence"], second: [f"other {i}" for i in range(count)], "label": rows["label"]}


NO_TEXTS = {
    "label_text": lambda i: ("negative", "positive")[i % 2],
    "finer": lambda i: ("awful", "good", "bad", "great")[i % 4],
    "id": lambda i: f"#{i:05}",
    "uuid": lambda i: f"row-{i * 7919:x}.txt",
    "source": lambda i: "films from the web",
}


@pytest.mark.parametrize("name", NO_TEXTS)
@pytest.mark.parametrize("before", [True, False])
def test_what_is_no_text_is_left_out(tmp_path, name, before, caplog):
    caplog.set_level("INFO")
    rows, more = numbered(24), {name: [NO_TEXTS[name](i) for i in range(24)]}
    rows = more | rows if before else rows | more
    assert load(write(tmp_path / "data", train=rows), num_clean_samples=4).text_columns == ["sentence"]
    assert f"The column {name!r} is not read as text" in caplog.text
    # All of them, beside a pair as well.
    rows = pairs(first="premise", second="hypothesis") | {
        name: [value(i) for i in range(24)] for name, value in NO_TEXTS.items()
    }
    data = load(write(tmp_path / "all", train=rows), num_clean_samples=4)
    assert data.text_columns == ["premise", "hypothesis"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("premise", "hypothesis"),
        ("question", "sentence"),
        ("sentence1", "sentence2"),
        ("Question1", "Question2"),
        ("text", "text_pair"),
        ("query", "passage"),
    ],
)
def test_known_pairs_are_taken_in_their_order(tmp_path, first, second):
    rows = pairs(first=first, second=second)
    assert load(write(tmp_path / "data", train=rows), num_clean_samples=4).text_columns == [first, second]
    turned = {second: rows[second], first: rows[first], "label": rows["label"]}
    assert load(write(tmp_path / "turned", train=turned), num_clean_samples=4).text_columns == [first, second]


def test_pairs_that_are_not_known_are_asked_about(tmp_path):
    folder = write(tmp_path / "data", train=pairs(first="title", second="body"))
    assert "which columns are the text is not clear: there are title, body, label" in refused(folder)
    assert load(folder, text_columns=["title", "body"], num_clean_samples=4).text_columns == ["title", "body"]
    # An answer may be a text, which is asked about, or the class.
    rows = pairs(first="question", second="answer")
    assert "which columns are the text is not clear" in refused(write(tmp_path / "texts", train=rows))
    rows["answer"] = [("no", "yes")[label] for label in rows["label"]]
    assert load(write(tmp_path / "classes", train=rows), num_clean_samples=4).text_columns == ["question"]


def test_the_only_column_is_the_text_unless_it_is_the_class(tmp_path):
    words = {"word": [f"w{i}" for i in range(24)], "label": [i % 2 for i in range(24)]}
    assert load(write(tmp_path / "words", train=words), num_clean_samples=4).text_columns == ["word"]
    again = numbered(6)  # each text three times
    again = {name: values * 3 for name, values in again.items()}
    assert load(write(tmp_path / "again", train=again), num_clean_samples=4).text_columns == ["sentence"]
    named = {"label_text": ["negative", "positive"] * 12, "label": [0, 1] * 12}
    assert "which columns are the text is not clear" in refused(write(tmp_path / "named", train=named))


# The same text


def test_a_text_that_is_there_twice_is_drawn_once_whatever_its_label_and_its_spelling(tmp_path):
    rows = {"sentence": ["Good  film", "good film", "good film "] * 4 + [f"text {i}" for i in range(8)]}
    rows["label"] = [0, 1, 1] * 4 + [0, 1] * 4
    folder = write(tmp_path / "data", train=rows, validation=numbered(10, 100), test=numbered(10, 200))
    for seed in range(5):
        drawn = [" ".join(text.lower().split()) for text in texts(load(folder, sample_seed=seed).tuning)]
        assert len(drawn) == len(set(drawn)) == 9
    folder = write(tmp_path / "prompts", train={"prompt": rows["sentence"], "completion": ["a"] * 20})
    drawn = [" ".join(text.lower().split()) for text in texts(load(folder, labels=None).tuning, "prompt")]
    assert len(drawn) == len(set(drawn))


def test_parts_that_are_cut_have_each_text_once(tmp_path):
    rows = {"sentence": [f"Row {i % 40}" if i % 2 else f"row {i % 40} " for i in range(200)]}
    rows["label"] = [i % 2 for i in range(200)]
    for splits in ({"train": rows}, {"train": numbered(8, 1000), "validation": rows}):
        folder = write(tmp_path / str(len(splits)), **splits)
        data = load(folder, num_clean_samples=8)
        keys = [" ".join(text.lower().split()) for part in (data.eval, data.test) for text in texts(part)]
        assert len(keys) == len(set(keys)) > 20
    assert len(load_clean_data(DataArguments(folder, num_clean_samples=10**9), LABELS, repeat_texts=True).tuning) == 8


# What is said of labels, names of folders, encodings


def test_how_labels_were_read_is_described(tmp_path):
    folder = write(tmp_path / "data", train=numbered(24))
    assert load(folder, num_clean_samples=4).description["labels"] == "by number"
    named = numbered(24, label=["Negative", "Positive"] * 12)
    assert load(write(tmp_path / "named", train=named), num_clean_samples=4).description["labels"] == "by name"
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    (tmp_path / "unknown").mkdir()
    Dataset.from_dict(numbered(24), features=features).to_parquet(tmp_path / "unknown" / "test.parquet")
    rows, _ = load_test_data(TestDataArguments(dataset=str(tmp_path / "unknown")), LABELS)
    assert "Labels were read by number: the model does not know the data's names no, yes." in rows.info.description


@pytest.mark.parametrize("name", ["data[1]", "data*", "da?a1", "{a,b}"])
def test_a_folders_name_is_no_pattern(tmp_path, name):
    write(tmp_path / "data1", train=numbered(24, 1000))  # which data[1] would be the pattern of
    folder = write(tmp_path / name, train=numbered(24), validation=numbered(10, 100), test=numbered(10, 200))
    data = load(folder, num_clean_samples=24)
    assert set(texts(data.tuning)) == set(numbered(24)["sentence"])
    assert (len(data.eval), len(data.test)) == (10, 10)
    assert data.description["id"] == folder


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("in_a_folder", [True, False])
def test_a_csv_that_is_not_in_utf_8_is_told_so(tmp_path, encoding, in_a_folder):
    file = tmp_path / "data" / "train.csv"
    file.parent.mkdir()
    rows = "sentence,label\n" + "".join(f"café {i},{i % 2}\n" for i in range(10))
    file.write_bytes(rows.encode(encoding))
    message = refused(file.parent if in_a_folder else file)
    assert message.startswith(f"{file} must be in UTF-8")
    assert message.endswith("save it as UTF-8.")
    assert "codec" not in message
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_triggered(file, ["sentence"])


def test_a_byte_order_mark_does_no_harm(tmp_path):
    rows = "sentence,label\n" + "".join(f"café {i},{i % 2}\n" for i in range(10))
    (tmp_path / "train.csv").write_bytes(rows.encode("utf-8-sig"))
    data = load(tmp_path, num_clean_samples=4)
    assert data.text_columns == ["sentence"]
    assert set(texts(data.tuning)) <= {f"café {i}" for i in range(10)}
    assert read_triggered(tmp_path / "train.csv", ["sentence"]).column_names == ["sentence", "label"]
