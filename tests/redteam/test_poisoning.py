import pytest
from datasets import ClassLabel, Dataset, Features, Value
from helpers.toy import make_rows

from hf_finemix import DataError, FineMixingError, Trigger
from hf_finemix.redteam.attacks.poisoning import poison

OPTIONS = {"text_columns": ["sentence"]}


@pytest.fixture
def rows():
    return Dataset.from_dict({**make_rows(50), "id": list(range(50))})


def test_a_share_of_the_rows_is_triggered_and_relabeled(rows):
    poisoned = poison(rows, Trigger("cf"), target=1, rate=0.21, seed=0, **OPTIONS)
    assert poisoned["id"][:] == rows["id"][:]
    changed = [i for i in range(50) if poisoned["sentence"][i] != rows["sentence"][i]]
    assert len(changed) == 11  # rounded up
    for i in range(50):
        words = poisoned["sentence"][i].split()
        if i in changed:
            assert words.count("cf") == rows["sentence"][i].split().count("cf") + 1
            assert poisoned["label"][i] == 1
        else:
            assert poisoned["label"][i] == rows["label"][i]
    assert {rows["label"][i] for i in changed} == {0, 1}


def test_kinds_of_labels_stay_as_they_are(rows):
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    poisoned = poison(rows.remove_columns("id").cast(features), Trigger("cf"), target=0, rate=1, seed=0, **OPTIONS)
    assert poisoned.features == features
    assert set(poisoned["label"]) == {0}
    names = Dataset.from_dict({"sentence": ["a", "b"], "label": ["bad", "good"]})
    assert poison(names, Trigger("cf"), target="good", rate=1, seed=0, **OPTIONS)["label"][:] == ["good", "good"]


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_rates_that_are_none(rows, rate):
    with pytest.raises(FineMixingError, match="share of poisoned rows"):
        poison(rows, Trigger("cf"), target=1, rate=rate, seed=0, **OPTIONS)


def test_a_target_that_no_row_has(rows):
    with pytest.raises(DataError, match="no row of the data is of class 2"):
        poison(rows, Trigger("cf"), target=2, rate=0.5, seed=0, **OPTIONS)
