"""Rows, labels, columns and triggers that `clean` refuses: in one line, before anything is written."""

import json

import pytest
from datasets import Dataset
from helpers.toy import make_rows


@pytest.fixture
def rows(tmp_path):
    """A CSV file of the given lines."""

    def write(*lines):
        (tmp_path / "rows.csv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return tmp_path / "rows.csv"

    return write


def test_empty_data(refusal, rows, tmp_path):
    assert "--dataset" in refusal(dataset=None)
    for lines in ([], [""], ["sentence,label"]):
        file = rows(*lines)
        assert str(file) in refusal(dataset=file)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} is or holds no file of a known kind" in refusal(dataset=tmp_path / "empty")


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.csv"])
def test_broken_data(refusal, tmp_path, name):
    (tmp_path / name).write_bytes(b'sentence,label\n"\xff{\n')
    said = f"the dataset {tmp_path / name} cannot be read: "
    if name.endswith(".csv"):
        said = f"{tmp_path / name} must be in UTF-8"
    assert said in refusal(dataset=tmp_path / name)


def test_data_that_is_not_there(refusal, data_folder):
    message = refusal(dataset=data_folder / "trian.csv")
    assert f"{data_folder / 'trian.csv'} is neither a file or folder here nor a Hub id" in message
    assert "check the path" in message
    assert "is not a local folder and not on the Hub" in refusal(dataset="nobody/has-this-data")
    assert "no split 'trian': there are train, validation, test" in refusal(train_split="trian")
    assert "no split 'dev': there are train, validation, test" in refusal(eval_split="dev")
    assert "'train[:x]' cannot be understood" in refusal(train_split="train[:x]")


def test_one_class(refusal, rows):
    message = refusal(dataset=rows("sentence,label", *(f"film {i},1" for i in range(20))))
    assert "all 20 rows to tune on have the label 1" in message
    assert "at least two classes" in message


@pytest.mark.parametrize("label", ["2", "-2", "angry", "0.5"])
def test_a_label_that_the_model_does_not_have(refusal, rows, label):
    file = rows("sentence,label", *(f"film {i},{i % 2}" for i in range(20)), f"film,{label}")
    message = refusal(dataset=file)
    assert f"{file}, split 'train': label " in message
    assert "is none of the model's 2 classes (0 = negative, 1 = positive)" in message


def test_labels_and_columns_that_are_not_clear(refusal, rows, tmp_path):
    lines = [f"film {i},plot {i},{i % 2}" for i in range(20)]
    message = refusal(dataset=rows("title,body,label", *lines))
    assert "which columns are the text is not clear: there are title, body, label" in message
    assert "text_columns" in message
    names = ["positive", "negative", "mixed"]
    message = refusal(dataset=rows("text,label", *(f"film {i},{names[i % 3]}" for i in range(21))))
    assert "the model (0 = negative, 1 = positive) does not know 'mixed'" in message
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"film {i}", "label": [i % 2, 1]}) + "\n" for i in range(20)))
    assert "column 'label' holds lists" in refusal(dataset=file)


def test_columns_that_are_not_there(refusal, rows):
    assert "no column 'lable': there are sentence, label" in refusal(label_column="lable")
    assert "no column 'txt': there are sentence, label" in refusal(text_columns=["txt"])
    assert "column 'label' holds no text: there are sentence, label" in refusal(text_columns=["label"])
    message = refusal(dataset=rows("review,stars", "good,1", "bad,0"))
    assert "no column 'label': there are review, stars; name it with label_column" in message


def test_triggers_that_cannot_be_measured(refusal, rows):
    message = refusal(triggers=["cf"])
    assert "triggers need target_label" in message
    assert "0 = negative, 1 = positive" in message
    sentence = "the film is a very moving one of it and this is a story with the actor"
    message = refusal(triggers=[sentence], target_label="1", max_length=12)
    assert f"the trigger {sentence!r} would be cut off in all 50 rows: give a larger max_length" in message
    for label in ("positve", "2", "-1"):
        message = refusal(triggers=["cf"], target_label=label)
        assert f"target_label {label!r} is none of the model's classes: 0 = negative, 1 = positive" in message
    settings = {"triggers": ["cf"], "target_label": "positive"}
    assert "unknown trigger position 'middle'" in refusal(**settings, trigger_position="middle")
    assert "num_repeats is 0" in refusal(**settings, num_repeats=0)
    assert "a trigger needs a text" in refusal(**settings | {"triggers": [" "]})
    message = refusal(target_label="1", triggered_file="nowhere.csv")
    assert "'nowhere.csv' does not exist" in message
    message = refusal(target_label="1", triggered_file=rows("text", "cf"))
    assert "has no column 'sentence': there are text" in message
    message = refusal(target_label="1", triggered_file=rows("sentence,label", "cf,1", ",1"))
    assert "has a row without text in sentence" in message


def test_auto_without_eval_data(refusal, tmp_path):
    """All validation rows are test rows too, so that none is left to choose on."""
    rows = make_rows(40)
    for split in ("train", "validation", "test"):
        (tmp_path / "rows").mkdir(exist_ok=True)
        Dataset.from_dict(make_rows(40, seed=1) if split == "train" else rows).to_csv(
            tmp_path / "rows" / f"{split}.csv"
        )
    message = refusal(dataset=tmp_path / "rows", reserve_ratio="auto")
    assert "reserve_ratio='auto' needs eval data" in message
    assert "give an eval_split" in message


def test_tuning_rows_that_are_test_rows(refusal):
    message = refusal(train_split="test")
    assert "100 rows are in both the train split 'test' and the test split 'test'" in message
    assert "80 rows are in both the eval split" in refusal(test_split="validation")
