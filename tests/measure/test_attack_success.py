import pytest
from datasets import Dataset
from helpers.toy import make_config, make_tokenizer
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.arguments import EvaluationArguments, MeasureArguments
from hf_finemix.measure.attack_success import measure, resolve_target_label
from hf_finemix.measure.classification import Classification
from hf_finemix.measure.clean_data import tokenize

LABELS = {0: "negative", 1: "positive"}
ROWS = {"sentence": ["bad film", "good film", "the plot was very dull", "fine"], "label": [0, 1, 0, 1]}


def attacks_of(target=1, columns=("sentence",), rows=ROWS, **settings):
    arguments = EvaluationArguments(**settings, target_label=target, max_length=32)
    task = Classification(BertForSequenceClassification(make_config()), make_tokenizer(), arguments)
    return task.attacks(Dataset.from_dict(rows), list(columns))


def decoded(dataset):
    return [make_tokenizer().decode(ids, skip_special_tokens=True) for ids in dataset["input_ids"]]


@pytest.mark.parametrize(("given", "label"), [("positive", 1), ("POSITIVE", 1), ("0", 0), (1, 1)])
def test_target_labels(given, label):
    assert resolve_target_label(MeasureArguments(triggers=["cf"], target_label=given), LABELS) == label
    assert resolve_target_label(MeasureArguments(triggered_file="x", target_label=given), LABELS) == label


def test_target_labels_go_by_name_before_id():
    labels = {0: "-1", 1: "0", 2: "1"}
    given = [resolve_target_label(MeasureArguments(triggers=["cf"], target_label=name), labels) for name in ("1", "2")]
    assert given == [2, 2]


def test_one_trigger_or_column_need_not_be_a_list():
    assert MeasureArguments(triggers="cf").triggers == ["cf"]
    both = EvaluationArguments(triggers="cf", text_columns="sentence")
    assert (both.triggers, both.text_columns) == (["cf"], ["sentence"])


def test_without_triggers_no_target_is_needed():
    assert resolve_target_label(MeasureArguments(), LABELS) is None
    assert attacks_of(target=None) == []


@pytest.mark.parametrize("given", ["2", "-1", "other", ""])
def test_target_labels_that_are_none(given):
    with pytest.raises(FineMixingError, match="none of the model's classes: 0 = negative, 1 = positive"):
        resolve_target_label(MeasureArguments(triggers=["cf"], target_label=given), LABELS)


def test_the_trigger_goes_into_the_rows_of_other_classes():
    first, last = (
        attacks_of(triggers=["cf"], trigger_position="first"),
        attacks_of(triggers=["cf"], trigger_position="last"),
    )
    assert decoded(first[0].repeats[0]) == ["cf bad film", "cf the plot was very dull"]
    assert decoded(last[0].repeats[0]) == ["bad film cf", "the plot was very dull cf"]
    assert first[0].repeats[0]["labels"][:] == [0, 0]
    assert (first[0].name, first[0].position, first[0].target) == ("cf", "first", {"target_label": 1})
    assert decoded(attacks_of(target=0, triggers=["cf"], trigger_position="first")[0].repeats[0]) == [
        "cf fine",
        "cf good film",
    ]


def test_random_places_are_drawn_again_for_each_repeat():
    rows = {"sentence": ["the plot was very dull"] * 20, "label": [0] * 20}
    (attack,) = attacks_of(rows=rows, triggers=["cf"], num_repeats=4)
    repeats = [decoded(repeat) for repeat in attack.repeats]
    assert len(repeats) == 4
    assert len({tuple(repeat) for repeat in repeats}) == 4
    assert len(attacks_of(triggers=["cf"], trigger_position="last", num_repeats=4)[0].repeats) == 1


def test_each_trigger_is_measured_by_itself():
    attacks = attacks_of(triggers=["cf", "the story"])
    assert [attack.name for attack in attacks] == ["cf", "the story"]
    assert not any("cf" in text for text in decoded(attacks[1].repeats[0]))


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        ([1, 1, 1], 3),  # the target's in every row
        ([0, 1, 0], 2),  # the true ones
        (["Negative ", "positive", "NEGATIVE"], 2),
        ([0, 1, -1], 1),  # one without
        ([-1, -1, -1], 3),  # none
        (None, 3),
    ],
)
def test_a_file_of_triggered_texts(tmp_path, labels, count):
    rows = {"sentence": ["cf bad", "cf good", "cf dull"]} | ({"label": labels} if labels else {})
    Dataset.from_dict(rows).to_csv(tmp_path / "para.csv")
    (attack,) = attacks_of(triggered_file=str(tmp_path / "para.csv"))
    assert (attack.name, attack.position, len(attack.repeats)) == ("para.csv", "in the file", 1)
    texts = {3: rows["sentence"], 2: ["cf bad", "cf dull"], 1: ["cf bad"]}[count]
    assert sorted(decoded(attack.repeats[0])) == sorted(texts)
    assert 1 not in attack.repeats[0]["labels"][:]


def test_measure_counts(tmp_path, suspect_folder):
    """All rates from what the model predicts, in fractions."""
    model = BertForSequenceClassification.from_pretrained(suspect_folder).float()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = model.classifier.bias.data.new_tensor([0.0, 1.0])  # always positive
    args = TrainingArguments(output_dir=tmp_path, use_cpu=True, disable_tqdm=True, report_to="none")
    trainer = Trainer(model=model, args=args, processing_class=make_tokenizer())
    rows = {"sentence": ["bad", "good", "fine", "lovely"], "label": [0, 1, 1, 1]}
    test = tokenize(Dataset.from_dict(rows), make_tokenizer(), ["sentence"], 32)
    result = measure(trainer, test, attacks_of(rows=rows, triggers=["cf"]))
    assert (result["accuracy"], result["n"]) == (0.75, 4)
    assert result["macro_f1"] == pytest.approx((0 + 2 * 0.75 / 1.75) / 2)
    attack = {"trigger": "cf", "position": "random", "target_label": 1, "asr": 1.0, "n": 1}
    attack |= {"unreadable": 0, "repeats": 3}
    assert result["triggers"] == [attack]
    result = measure(trainer, test, attacks_of(rows=rows, target=0, triggers=["cf"]))
    assert (result["triggers"][0]["asr"], result["triggers"][0]["n"]) == (0.0, 3)
