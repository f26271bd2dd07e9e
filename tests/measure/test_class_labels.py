"""Labels in data: a value is a name in every place or a number in every place."""

import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_finemix.errors import DataError
from hf_finemix.measure.arguments import MeasureArguments
from hf_finemix.measure.attack_success import resolve_target_label
from hf_finemix.measure.class_labels import ClassNames, class_names, completions

TWO = {"negative": 0, "positive": 1}
STARS = {"1": 0, "2": 1, "3": 2, "4": 3, "5": 4}
TRUTH = {"False": 0, "True": 1}


def rows_of(values, names=None):
    if names is None:
        return Dataset.from_dict({"label": values})
    return Dataset.from_dict({"label": values}, features=Features({"label": ClassLabel(names=names)}))


def read(label2id, values, names=None):
    labels, note = ClassNames(label2id).read({"rows": rows_of(values, names)}, "label")
    return labels["rows"], note["labels"]


def refused(label2id, values, names=None):
    with pytest.raises(DataError) as error:
        read(label2id, values, names)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("label2id", "values", "found", "how"),
    [
        (TWO, [" Positive", "NEGATIVE "], [1, 0], "by name"),
        (TWO, [1, 0], [1, 0], "by number"),
        (TWO, ["1", " 0 "], [1, 0], "by number"),
        (TWO, [1.0, 0.0, None], [1, 0, None], "by number"),
        (TWO, ["1.0", "0.0"], [1, 0], "by number"),
        (TWO, [True, False], [1, 0], "by number"),
        (TRUTH, [True, False], [1, 0], "by name"),
        (TRUTH, ["TRUE", "false"], [1, 0], "by name"),
        (TRUTH, [1, 0], [1, 0], "by number"),
        ({"0": 1, "1": 0}, [0, 1], [1, 0], "by name"),
        (STARS, ["1", "5"], [0, 4], "by name"),
        (STARS, [1, 5], [0, 4], "by name"),
        (STARS, [1.0, 5.0], [0, 4], "by name"),
        (STARS, [0, 1, 4], [0, 1, 4], "by number"),
        (STARS, ["0", "1", "4"], [0, 1, 4], "by number"),
    ],
)
def test_a_value_is_a_name_in_every_place_or_a_number_in_every_place(label2id, values, found, how):
    assert read(label2id, values) == (found, how)


@pytest.mark.parametrize(
    "values",
    [[1, -1, 0], [1.0, -1.0, 0.0], ["positive", "", "negative"], ["1", "-1", "0"], [1, None, 0], ["1", " ", "0"]],
)
def test_what_is_no_label(values):
    assert read(TWO, values)[0] == [1, None, 0]
    assert read(TWO, [1, -1, 0], ["negative", "positive"])[0] == [1, None, 0]


def test_minus_one_is_a_label_only_where_a_class_is_called_so_and_it_is_written_as_a_name():
    sentiment = {"-1": 0, "0": 1, "1": 2}
    assert read(sentiment, ["-1", "0", "1"])[0] == [0, 1, 2]
    assert read(sentiment, [-1, 0, 1])[0] == [None, 1, 2]


def test_class_labels_go_by_the_names_that_are_used():
    assert read(TWO, [0, 1, 0], ["positive", "negative", "mixed"]) == ([1, 0, 1], "by name")
    message = refused(TWO, [0, 1, 2], ["positive", "negative", "mixed"])
    assert "the model (0 = negative, 1 = positive) does not know 'mixed'" in message
    assert "does not know 'mixed'" in refused(TWO, ["positive", "mixed", "1"])
    # Numbers that are names in the data are not those of the model's classes.
    five = {f"LABEL_{i}": i for i in range(5)}
    assert read(five, [0, 4], ["1", "2", "3", "4", "5"]) == ([0, 4], "by number")


def test_names_that_say_nothing_fall_back_to_numbers_and_that_is_said(caplog):
    labels, note = ClassNames(TWO).read({"rows": rows_of([1, 0], ["no", "yes"])}, "label")
    assert labels["rows"] == [1, 0]
    assert note == {"labels": "by number", "unknown_class_names": ["no", "yes"]}
    assert "Labels were read by number: the model does not know the data's names no, yes." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        read(TWO, [1, 0])
    assert not caplog.text


def test_all_parts_are_read_by_one_rule():
    """Each by itself, the second could be names of stars."""
    parts = {"train": rows_of([0, 1, 4]), "test": rows_of([1, 2, 3])}
    assert ClassNames(STARS).read(parts, "label")[0] == {"train": [0, 1, 4], "test": [1, 2, 3]}
    # But a file may have the names and another one the numbers.
    parts = {"train": rows_of(["positive", "negative"]), "test": rows_of([1, 0])}
    assert ClassNames(TWO).read(parts, "label")[0] == {"train": [1, 0], "test": [1, 0]}


@pytest.mark.parametrize("values", [[[1, 0], [0, 1]], [{"a": 1}, {"a": 0}]])
def test_several_labels_a_row_are_refused(values):
    rows = Dataset.from_dict({"label": values})
    for act in (lambda: ClassNames(TWO).read({"rows": rows}, "label"), lambda: class_names(rows, "label")):
        with pytest.raises(DataError, match="column 'label' holds lists"):
            act()
    with pytest.raises(DataError, match="column 'label' holds lists"):
        completions(rows, "label")


@pytest.mark.parametrize("bad", [2, "angry", 0.5, "2"])
def test_a_label_that_is_no_class_is_named(bad):
    kind = type(bad)
    assert f"label {bad!r} in column 'label' is none of the model's 2 classes" in refused(TWO, [kind(1), bad])


@pytest.mark.parametrize(
    ("label2id", "given", "found"),
    [
        (TWO, " Positive ", 1),
        (TWO, "1.0", 1),
        (TWO, True, 1),
        (TRUTH, "true", 1),
        (STARS, "1", 0),
        (STARS, 5, 4),
        ({"no": 0, "yes": 1}, "No", 0),
    ],
)
def test_the_target_is_read_like_the_labels(label2id, given, found):
    names = {i: name for name, i in label2id.items()}
    assert resolve_target_label(MeasureArguments(triggers=["cf"], target_label=given), names) == found


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0, 2, -1], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ([0.0, 1.0, None], ["LABEL_0", "LABEL_1"]),
        (["0", "1", "-1"], ["LABEL_0", "LABEL_1"]),
        ([True, False], ["False", "True"]),
        (["good ", "Good", "bad", ""], ["bad", "good"]),
    ],
)
def test_names_for_the_classes_of_a_fresh_model(values, names):
    rows = rows_of(values)
    assert class_names(rows, "label") == names
    found, _ = ClassNames({name: i for i, name in enumerate(names)}).read({"rows": rows}, "label")
    assert {label for label in found["rows"] if label is not None} <= set(range(len(names)))


def test_class_names_of_a_class_label_are_its_own():
    assert class_names(rows_of([0, 1], ["neg", "pos"]), "label") == ["neg", "pos"]


def test_a_column_of_texts_is_no_class_label():
    assert completions(
        Dataset.from_dict({"label": ["a", " ", None]}, features=Features({"label": Value("string")})), "label"
    ) == [
        "a",
        None,
        None,
    ]
