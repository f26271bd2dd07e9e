import json
import os

import evaluate
import numpy as np
import pytest
from helpers.refusals import one_line
from transformers import EvalPrediction

from hf_finemix.errors import FineMixingError
from hf_finemix.measure.metrics import Accuracy, AttackSuccessRate, MacroF1, compute_classification_metrics

# Ten samples of three classes. Right: samples 0, 1, 4, 6, 7, 8.
REFERENCES = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
PREDICTIONS = [0, 0, 1, 2, 1, 0, 1, 2, 2, 1]
# Class 0: TP 2, FP 1, FN 2 -> 4/7. Class 1: TP 2, FP 2, FN 1 -> 4/7. Class 2: TP 2, FP 1, FN 1 -> 2/3.
MACRO_F1 = (4 / 7 + 4 / 7 + 2 / 3) / 3


def all_metrics():
    return [Accuracy(), MacroF1(), AttackSuccessRate(target_label=1)]


def test_accuracy_by_hand():
    assert Accuracy().compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": 0.6}
    assert Accuracy().compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 1.0}
    assert Accuracy().compute(predictions=[1, 1], references=[0, 0]) == {"accuracy": 0.0}


def test_macro_f1_by_hand():
    result = MacroF1().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"macro_f1": pytest.approx(MACRO_F1, abs=1e-15)}
    # Class 1 is predicted once and never true, class 5 is true once and never predicted: both count 0.
    result = MacroF1().compute(predictions=[0, 0, 1], references=[0, 0, 5])
    assert result == {"macro_f1": pytest.approx(1 / 3, abs=1e-15)}
    # A class that does not occur at all (0 here) does not count.
    assert MacroF1().compute(predictions=[3, 9], references=[3, 9]) == {"macro_f1": 1.0}
    assert MacroF1().compute(predictions=[3, 9], references=[9, 3]) == {"macro_f1": 0.0}


def test_macro_f1_is_that_of_scikit_learn():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    rng = np.random.default_rng(0)
    metric = MacroF1()
    for _ in range(50):
        samples, classes = int(rng.integers(1, 200)), int(rng.integers(1, 12))
        references = rng.integers(0, classes, samples)
        predictions = np.where(rng.random(samples) < 0.6, references, rng.integers(0, classes + 2, samples))
        expected = f1_score(references, predictions, average="macro", zero_division=0)
        result = metric.compute(predictions=predictions, references=references)
        assert result["macro_f1"] == pytest.approx(expected, abs=1e-12)


def test_attack_success_rate_by_hand():
    # References other than 1: seven samples, of which samples 2 and 9 are predicted 1.
    result = AttackSuccessRate(target_label=1).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"attack_success_rate": pytest.approx(2 / 7, abs=1e-15)}
    # Other than 0: six samples, of which sample 5 is predicted 0.
    result = AttackSuccessRate(target_label=0).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"attack_success_rate": pytest.approx(1 / 6, abs=1e-15)}
    # A wrong answer that is not the target is no success; a class never predicted gives 0.
    result = AttackSuccessRate(target_label=7).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"attack_success_rate": 0.0}


def test_samples_of_the_target_class_do_not_change_the_attack_success_rate():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    others = references != 2
    metric = AttackSuccessRate(target_label=2)
    everything = metric.compute(predictions=predictions, references=references)
    assert everything == metric.compute(predictions=predictions[others], references=references[others])
    predictions[~others] = 2
    assert everything == metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_results_are_one_plain_fraction_under_the_name_of_the_metric(metric):
    result = metric.compute(predictions=np.array(PREDICTIONS), references=np.array(REFERENCES))
    assert list(result) == [metric.name]
    assert type(result[metric.name]) is float
    assert 0 <= result[metric.name] <= 1
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_every_metric_documents_itself(metric):
    assert metric.description
    assert "@" in metric.citation
    assert metric.info.reference_urls
    assert all(url.startswith("https://") for url in metric.info.reference_urls)
    assert {name: feature.dtype for name, feature in metric.features.items()} == {
        "predictions": "int64",
        "references": "int64",
    }
    assert "Predicted class ids" in metric.compute.__doc__


def test_names():
    assert [metric.name for metric in all_metrics()] == ["accuracy", "macro_f1", "attack_success_rate"]


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_an_instance_can_be_used_again_and_in_batches(metric):
    whole = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == whole
    for start in range(0, 10, 4):
        metric.add_batch(predictions=PREDICTIONS[start : start + 4], references=REFERENCES[start : start + 4])
    assert metric.compute() == whole
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == whole
    metric.add_batch(predictions=PREDICTIONS[:4], references=REFERENCES[:4])
    assert metric.compute(predictions=PREDICTIONS[4:], references=REFERENCES[4:]) == whole


def test_combined():
    combined = evaluate.combine(all_metrics())
    expected = {
        "accuracy": 0.6,
        "macro_f1": pytest.approx(MACRO_F1, abs=1e-15),
        "attack_success_rate": pytest.approx(2 / 7, abs=1e-15),
    }
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES) == expected
    for start in (0, 5):
        combined.add_batch(predictions=PREDICTIONS[start : start + 5], references=REFERENCES[start : start + 5])
    assert combined.compute() == expected


def test_two_targets_combined_keep_their_own():
    combined = evaluate.combine({"zero": AttackSuccessRate(0), "one": AttackSuccessRate(1)})
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES) == {
        "zero_attack_success_rate": pytest.approx(1 / 6),
        "one_attack_success_rate": pytest.approx(2 / 7),
    }


def test_instances_with_open_batches_do_not_disturb_each_other():
    one, other = Accuracy(), Accuracy()
    one.add_batch(predictions=[1, 1], references=[1, 1])
    other.add_batch(predictions=[0], references=[1])
    assert one.compute() == {"accuracy": 1.0}
    assert other.compute() == {"accuracy": 0.0}


def test_no_files_and_no_output(tmp_path, capfd):
    cache_dir = str(tmp_path / "cache")
    metrics = [Accuracy(cache_dir=cache_dir), MacroF1(cache_dir=cache_dir), AttackSuccessRate(1, cache_dir=cache_dir)]
    evaluate.combine(metrics).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert not os.path.exists(cache_dir)
    assert capfd.readouterr() == ("", "")


def test_on_disk_when_asked_for(tmp_path):
    metric = Accuracy(keep_in_memory=False, cache_dir=str(tmp_path))
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": 0.6}
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": 0.6}
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
def test_no_samples_is_an_error_after_which_the_metric_still_works(metric):
    with pytest.raises(FineMixingError) as error:
        metric.compute(predictions=[], references=[])
    assert "no samples" in one_line(error)
    with pytest.raises(FineMixingError) as error:
        metric.compute()
    assert "no samples" in one_line(error)
    assert metric.compute(predictions=[0, 0], references=[0, 0])
    with pytest.raises(FineMixingError):  # the samples of the last call are gone
        metric.compute()


@pytest.mark.parametrize("metric", all_metrics(), ids=lambda metric: metric.name)
@pytest.mark.parametrize(
    ("predictions", "references", "named"),
    [
        ([0, 1], None, "both"),
        (None, [0, 1], "both"),
        ([0, None], [0, 0], "None"),
        ([0, 1], [0, None], "None"),
        ([0, 1, 1], [-1, 0, -100], "2 of 3"),
    ],
)
def test_samples_without_a_label_or_a_prediction_are_refused(metric, predictions, references, named):
    with pytest.raises(FineMixingError) as error:
        metric.compute(predictions=predictions, references=references)
    assert named in one_line(error)
    assert metric.name in str(error.value)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="Mismatch"):
        Accuracy().compute(predictions=[0, 1], references=[0])


def test_attack_success_rate_without_samples_of_another_class_is_an_error():
    metric = AttackSuccessRate(target_label=1)
    with pytest.raises(FineMixingError) as error:
        metric.compute(predictions=[1, 0, 1], references=[1, 1, 1])
    assert "all 3 references" in one_line(error)
    assert metric.compute(predictions=[1, 0], references=[0, 0]) == {"attack_success_rate": 0.5}


@pytest.mark.parametrize("target_label", [-1, 1.0, "1", None, True])
def test_the_target_label_must_be_a_class_id(target_label):
    with pytest.raises(FineMixingError) as error:
        AttackSuccessRate(target_label=target_label)
    assert repr(target_label) in one_line(error)


def test_the_target_label_may_come_from_numpy_but_has_no_default():
    assert AttackSuccessRate(np.int64(2)).target_label == 2
    with pytest.raises(TypeError):
        AttackSuccessRate()


# compute_classification_metrics


def logits_of(predictions: list[int], classes: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(predictions), classes)).astype(np.float32)
    logits[np.arange(len(predictions)), predictions] = 10.0
    return logits


EXPECTED = {"accuracy": 0.6, "macro_f1": pytest.approx(MACRO_F1, abs=1e-15)}


def test_trainer_metrics():
    logits, labels = logits_of(PREDICTIONS), np.array(REFERENCES)
    result = compute_classification_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert result == EXPECTED
    assert all(type(value) is float for value in result.values())
    assert compute_classification_metrics((logits, labels)) == EXPECTED


def test_only_the_first_entry_of_a_tuple_of_outputs_counts():
    hidden_states = np.random.default_rng(1).normal(size=(10, 4, 8))
    outputs = (logits_of(PREDICTIONS), hidden_states)
    # With inputs and losses in it an EvalPrediction has four entries.
    prediction = EvalPrediction(outputs, np.array(REFERENCES), inputs=np.zeros((10, 4)), losses=np.zeros(10))
    assert compute_classification_metrics(prediction) == EXPECTED


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (logits_of([0] * 10, classes=1), np.array(REFERENCES)),  # a regression head
        (logits_of(PREDICTIONS), np.array(REFERENCES, dtype=np.float32)),  # labels of a regression
        (np.array(PREDICTIONS), np.array(REFERENCES)),  # argmax already taken
        (logits_of(PREDICTIONS), np.array(REFERENCES[:9])),
        (logits_of(PREDICTIONS), None),
        (logits_of([]), np.array([], dtype=np.int64)),
        (logits_of(PREDICTIONS), np.array([-1] * 10)),
    ],
)
def test_what_is_no_classification_is_refused(logits, labels):
    with pytest.raises(FineMixingError) as error:
        compute_classification_metrics((logits, labels))
    one_line(error)
