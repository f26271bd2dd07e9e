import datasets
import numpy as np
import pytest

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.triggered_rows import insert_trigger, non_target_rows
from hf_finemix.measure.triggers import Trigger


def words(count: int) -> str:
    return " ".join(f"w{i}" for i in range(count))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


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


def test_only_the_second_text_of_a_pair_is_changed(pairs):
    triggered = insert_trigger(pairs, Trigger("cf"), text_columns=["question", "sentence"], seed=0)
    assert triggered.features == pairs.features
    assert triggered.column_names == pairs.column_names
    for name in ("idx", "question", "label"):
        assert triggered[name][:] == pairs[name][:]
    for before, after in zip(pairs["sentence"], triggered["sentence"], strict=True):
        assert after.split().count("cf") == 1
        assert [word for word in after.split() if word != "cf"] == before.split()


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
        ({"text_columns": ["text"]}, "question"),
        ({"text_columns": ["question", "text"]}, "text"),
        ({"text_columns": ["idx"]}, "row 0"),
    ],
)
def test_wrong_columns_are_named(pairs, arguments, named):
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


def test_unknown_label_columns_are_named(pairs):
    with pytest.raises(FineMixingError) as error:
        non_target_rows(pairs, label_column="labels", target_label=1)
    assert "'labels'" in one_line(error)
    assert "question" in str(error.value)
