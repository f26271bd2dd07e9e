"""FineMixingTrainer chooses ρ: trials from the suspect's own weights, on eval data or cross-validated."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import drifted, make_config, make_rows
from helpers.trainers import (
    Watcher,
    eval_accuracy,
    frozen,
    load,
    mixing,
    one_line,
    optimizer_of,
    same,
    sentences,
    settings,
    trainer_of,
    weights,
)
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel, Trainer, TrainerCallback

from hf_finemix import FineMixingConfig, FineMixingError

CANDIDATES = [0.1, 0.3, 0.5, 0.8]
TRIALS = {"learning_rate": 2e-3, "max_steps": 4}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A suspect that has learned the toy task, its base, and what fine-tuning at each fixed ρ gives."""
    folder = tmp_path_factory.mktemp("task")
    torch.manual_seed(0)
    # Larger weights than BERT starts with, so that what is learned does not dwarf them.
    BertModel(make_config(initializer_range=0.1)).save_pretrained(folder / "base")
    torch.manual_seed(1)
    model = load(folder / "base")
    args = settings(folder, max_steps=50, learning_rate=1e-2, per_device_train_batch_size=16)
    trainer = Trainer(model, args, train_dataset=sentences(128, 3))
    trainer.train()
    model.save_pretrained(folder / "suspect")
    rows = sentences(1024, 5)  # enough to tell the drops below
    task = SimpleNamespace(base=str(folder / "base"), suspect=folder / "suspect", rows=rows, accuracy={}, weights={})
    task.suspect_accuracy = eval_accuracy(trainer, rows)
    for ratio in (0.0, *CANDIDATES):
        trainer = fixed_trainer(task, folder, mixing(ratio))
        trainer.train()
        task.accuracy[ratio], task.weights[ratio] = eval_accuracy(trainer, rows), weights(trainer.model)
    # What the tests below rely on: accuracy rises with ρ, and hardly any ρ at all is chance.
    assert task.suspect_accuracy > 0.95
    accuracies = [task.accuracy[ratio] for ratio in CANDIDATES]
    assert all(low < high for low, high in itertools.pairwise(accuracies))
    assert task.accuracy[0.0] == task.accuracy[0.1] < task.suspect_accuracy
    return task


def fixed_trainer(task, folder, config, arguments=TRIALS, **changes):
    """A trainer with the task's suspect and few rows to tune it on."""
    changes = {"train_dataset": sentences(32, 4), "args": settings(folder, **arguments), **changes}
    return trainer_of(folder, task.base, task.suspect, mixing_config=config, **changes)


def auto_trainer(task, folder, *, drop=None, config=None, arguments=None, **changes):
    """A trainer that, unless told otherwise, has to choose the third candidate."""
    drop = task.suspect_accuracy - task.accuracy[0.5] if drop is None else drop
    config = mixing("auto", max_accuracy_drop=drop, **{"candidate_ratios": CANDIDATES, **(config or {})})
    changes = {"eval_dataset": task.rows, **changes}
    return fixed_trainer(task, folder, config, {**TRIALS, **(arguments or {})}, **changes)


def assert_third_chosen(trainer, task):
    search = trainer.ratio_search
    assert search.suspect_accuracy == task.suspect_accuracy
    # Every trial is what a run at that fixed ρ is, so every trial starts from the suspect's own weights.
    assert [(t["reserve_ratio"], t["accuracy"]) for t in search.trials] == [(r, task.accuracy[r]) for r in (0.5, 0.3)]
    assert (search.chosen, search.within_limit) == (0.5, True)
    assert trainer.mixing_record.reserve_ratio == 0.5
    assert same(weights(trainer.model), task.weights[0.5])


@pytest.mark.parametrize("evaluated", [False, True])
def test_auto_takes_the_smallest_ratio_within_the_drop(tmp_path, task, evaluated, caplog):
    trainer = auto_trainer(task, tmp_path)
    if evaluated:
        trainer.evaluate()
    output = trainer.train()
    assert_third_chosen(trainer, task)
    assert output.global_step == trainer.state.global_step == 4
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    trainer.save_model()
    assert FineMixingConfig.from_pretrained(tmp_path).reserve_ratio == 0.5

    search = trainer.ratio_search
    trainer.train()  # goes on from there
    assert trainer.ratio_search is search
    assert not same(weights(trainer.model), task.weights[0.5])


def test_auto_takes_the_first_where_all_would_do(tmp_path, task):
    trainer = auto_trainer(task, tmp_path, drop=1.0)
    trainer.train()
    assert [trial["reserve_ratio"] for trial in trainer.ratio_search.trials] == [0.5, 0.3, 0.1]
    assert same(weights(trainer.model), task.weights[0.1])


def test_auto_where_no_ratio_is_within_the_drop(tmp_path, task, caplog):
    # The largest is the best that there can be.
    trainer = auto_trainer(task, tmp_path, drop=0.0, config={"candidate_ratios": [0.1, 0.0]})
    trainer.train()
    search = trainer.ratio_search
    assert [trial["reserve_ratio"] for trial in search.trials] == [0.1]
    assert (search.chosen, search.within_limit) == (0.1, False)
    assert trainer.mixing_record.reserve_ratio == 0.1
    assert same(weights(trainer.model), task.weights[0.1])
    [warning] = [r for r in caplog.records if r.levelname == "WARNING" and r.name.startswith("hf_finemix")]
    assert "max_accuracy_drop" in warning.getMessage()
    trainer.save_model()
    assert FineMixingConfig.from_pretrained(tmp_path).reserve_ratio == 0.1


def test_auto_best_of_those_too_low(tmp_path, task, caplog):
    trainer = auto_trainer(task, tmp_path, drop=0.0, config={"candidate_ratios": [0.1, 0.3]})
    trainer.train()
    assert (trainer.ratio_search.chosen, trainer.ratio_search.within_limit) == (0.3, False)
    assert same(weights(trainer.model), task.weights[0.3])
    assert "ρ = 0.3 was the best" in caplog.text


def test_auto_with_model_init(tmp_path, task):
    built = []

    def model_init():
        built.append(load(task.suspect))
        return built[-1]

    trainer = auto_trainer(task, tmp_path, model_init=model_init)
    trainer.train()
    assert_third_chosen(trainer, task)
    assert any(trainer.model is model for model in built)
    # A newly built model is a new suspect: its ρ is chosen anew.
    search = trainer.ratio_search
    trainer.train()
    assert trainer.ratio_search is not search
    assert_third_chosen(trainer, task)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_eval_metrics": True, "per_device_eval_batch_size": 24},
        {"eval_do_concat_batches": False, "per_device_eval_batch_size": 24},
        {"prediction_loss_only": True},
        {"eval_accumulation_steps": 1, "per_device_eval_batch_size": 24},
        {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_auto_under_other_arguments(tmp_path, task, arguments):
    trainer = auto_trainer(task, tmp_path, arguments=arguments)
    trainer.train()
    assert_third_chosen(trainer, task)


def test_auto_with_several_eval_datasets(tmp_path, task):
    parts = {"first": task.rows[:10], "second": task.rows[10:]}
    trainer = auto_trainer(task, tmp_path, eval_dataset=parts)
    trainer.train()
    assert_third_chosen(trainer, task)


def test_auto_with_unlabeled_positions(tmp_path, task):
    """Rows labeled -100 do not count, neither as right nor as wrong."""
    ignored = [{**row, "labels": -100} for row in sentences(10, 8)]
    trainer = auto_trainer(task, tmp_path, eval_dataset=[*ignored, *task.rows])
    trainer.train()
    assert_third_chosen(trainer, task)


def test_auto_leaves_the_users_metrics_in_place(tmp_path, task):
    sizes, watcher = [], Watcher()

    def compute_metrics(prediction):
        sizes.append(len(prediction.label_ids))
        return {"size": len(prediction.label_ids)}

    def preprocess(logits, labels):
        return logits.argmax(-1)

    trainer = auto_trainer(
        task,
        tmp_path,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess,
        callbacks=[watcher],
        arguments={"eval_strategy": "steps", "eval_steps": 4},
    )
    trainer.train()
    assert_third_chosen(trainer, task)
    # Once at the end of each trial, as asked for by eval_steps, and never for choosing.
    assert sizes == [1024, 1024]
    assert watcher.events == ["init_end", *["train_begin", "evaluate"] * 2]
    assert trainer.compute_metrics is compute_metrics
    assert trainer.preprocess_logits_for_metrics is preprocess
    assert trainer.evaluate()["eval_size"] == 1024


def test_auto_goes_back_to_the_chosen_trial_where_others_came_after_it(tmp_path, task):
    trainer = auto_trainer(task, tmp_path)
    output = trainer.train()
    assert trainer.ratio_search.trials[-1]["reserve_ratio"] == 0.3
    assert trainer.mixing_record.reserve_ratio == trainer.config_of_mix.reserve_ratio == 0.5
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    assert losses[-1] == output.training_loss


def test_a_hopeless_trial_is_given_up_half_way(tmp_path, task):
    """At a learning rate at which nothing is learned, the trials that lack accuracy at first lack it at the end."""
    steps = []

    class Count(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    arguments = {"max_steps": 40, "learning_rate": 0.0}
    trainer = auto_trainer(task, tmp_path, drop=0.02, arguments=arguments, callbacks=[Count()])
    trainer.train()
    stopped = [trial["stopped_early"] for trial in trainer.ratio_search.trials]
    assert any(stopped)
    assert steps[: len(stopped)] == [20 if early else 40 for early in stopped]
    assert not any(trial["accepted"] for trial in trainer.ratio_search.trials if trial["stopped_early"])
    assert trainer.state.global_step == 40, "what is handed over is trained to the end"


def test_a_glance_changes_nothing_of_a_trial(tmp_path, task):
    """A trial of 24 steps is looked at twice on the way, and is what a run at that fixed ρ is."""
    arguments = {**TRIALS, "max_steps": 24}
    trainer = auto_trainer(task, tmp_path, drop=1.0, config={"candidate_ratios": [0.3]}, arguments=arguments)
    trainer.train()
    fixed = fixed_trainer(task, tmp_path, mixing(0.3), arguments)
    fixed.train()
    assert same(weights(trainer.model), weights(fixed.model))


@pytest.mark.parametrize("strategy", ["random", "fisher"])
def test_auto_by_cross_validation_needs_no_eval_data(tmp_path, task, strategy):
    config = {"cross_validation_folds": 4, "strategy": strategy}
    trainer = auto_trainer(task, tmp_path, eval_dataset=None, drop=0.3, config=config)
    trainer.train()
    search = trainer.ratio_search
    assert search.folds == 4
    for trial in search.trials:
        assert trial["trainings"] == 4 or trial["stopped_early"]
        assert trial["n"] <= 32
    assert len(trainer.train_dataset) == 32
    # In the end it is trained on all of them.
    fixed = fixed_trainer(task, tmp_path, mixing(search.chosen, strategy=strategy))
    fixed.train()
    assert same(weights(trainer.model), weights(fixed.model))


@pytest.mark.parametrize(("ratio", "accepted"), [(0.8, True), (0.1, False)])
def test_few_eval_samples_are_told(tmp_path, task, ratio, accepted, caplog):
    """Where they cannot tell, ρ is taken and that is said; where it is shown to cost too much, only that is said."""
    few = {"eval_dataset": task.rows[:20], "drop": 0.01, "config": {"candidate_ratios": [ratio]}}
    trainer = auto_trainer(task, tmp_path, **few)
    trainer.train()
    search = trainer.ratio_search
    assert not search.resolved
    assert search.trials[0]["accepted"] is accepted
    assert ("20 samples cannot tell an accuracy drop of 0.01" in caplog.text) is accepted
    assert ("No candidate ρ keeps the accuracy" in caplog.text) is not accepted


def test_metrics_are_put_back_after_an_error_too(tmp_path, task):
    during = []

    def compute_metrics(prediction):
        return {}

    def collate(rows):
        during.append(trainer.compute_metrics)
        raise RuntimeError("no batch of these")

    trainer = auto_trainer(task, tmp_path, data_collator=collate, compute_metrics=compute_metrics)
    with pytest.raises(RuntimeError, match="no batch of these"):
        trainer.train()
    assert during[0] is not compute_metrics
    assert trainer.compute_metrics is compute_metrics


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        (lambda model: {"eval_dataset": None}, {}, "eval_dataset"),
        (lambda model: {"optimizers": optimizer_of(model)}, {}, "optimizer_cls_and_kwargs"),
        (lambda model: {"optimizers": (optimizer_of(model)[0], None)}, {}, "optimizer_cls_and_kwargs"),
        (lambda model: {}, {"bf16_full_eval": True}, "bf16_full_eval"),
        (lambda model: {"eval_dataset": [{**row, "labels": -100} for row in sentences(8)]}, {}, "labeled"),
        (lambda model: {"eval_dataset": [{**row, "labels": [1.0, 0.0]} for row in sentences(8)]}, {}, "no classes"),
    ],
    ids=["no eval data", "own optimizers", "own optimizer", "full eval", "no labels", "multi-label"],
)
def test_what_auto_cannot_do(tmp_path, task, changes, arguments, said):
    model = load(task.suspect)
    if said == "no classes":
        model.config.problem_type = "multi_label_classification"
    trainer = auto_trainer(task, tmp_path, model=model, arguments=arguments, **changes(model))
    with pytest.raises(FineMixingError, match=said) as error:
        trainer.train()
    one_line(error)
    assert same(weights(trainer.model), weights(load(task.suspect)))
    assert trainer.mixing_record is None


def test_auto_with_an_optimizer_class(tmp_path, task):
    sgd = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}
    trainer = auto_trainer(task, tmp_path, drop=0.0, **sgd)
    trainer.train()
    chosen = fixed_trainer(task, tmp_path, mixing(trainer.ratio_search.chosen), **sgd)
    chosen.train()
    assert same(weights(trainer.model), weights(chosen.model))


def test_an_interrupted_search_starts_anew(tmp_path, task):
    class Interrupt(TrainerCallback):
        begun = 0

        def on_train_begin(self, args, state, control, **kwargs):
            self.begun += 1

        def on_step_end(self, args, state, control, **kwargs):
            if self.begun == 2:
                raise KeyboardInterrupt

    trainer = auto_trainer(task, tmp_path, callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.ratio_search is None
    trainer.train()
    assert_third_chosen(trainer, task)


def test_auto_resumes_without_a_search(tmp_path, task):
    arguments = {"save_strategy": "steps", "save_steps": 2}
    auto_trainer(task, tmp_path, arguments=arguments).train()
    resumed = auto_trainer(task, tmp_path, arguments=arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.ratio_search is None
    assert same(weights(resumed.model), task.weights[0.5])
    assert FineMixingConfig.from_pretrained(tmp_path / "checkpoint-4").reserve_ratio == 0.5


@pytest.mark.parametrize("ratio", [0.4, "auto"])
def test_sentence_pairs_and_three_classes(make_trainer, tmp_path, base_folder, tokenizer, ratio):
    texts = make_rows(36, 1)["sentence"]
    rows = [
        {**tokenizer(one, two), "labels": i % 3}
        for i, (one, two) in enumerate(zip(texts, reversed(texts), strict=True))
    ]
    assert {1} <= set(rows[0]["token_type_ids"])
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(base_folder, num_labels=3)
    drifted(model).save_pretrained(tmp_path / "suspect")
    model = load(tmp_path / "suspect")
    head = weights(model.classifier)
    trainer = make_trainer(
        model=model,
        args=frozen(tmp_path),
        train_dataset=rows,
        eval_dataset=rows[:12],
        processing_class=tokenizer,
        mixing_config=mixing(ratio, candidate_ratios=[0.4], max_accuracy_drop=1.0),
    )
    trainer.train()
    assert same(weights(trainer.model.classifier), head)
    assert trainer.mixing_record.reserve_ratio == 0.4
    prediction = trainer.predict(rows[:12])
    assert prediction.predictions.shape == (12, 3)
    assert np.isfinite(prediction.metrics["test_loss"])
    if ratio == "auto":
        assert trainer.ratio_search.trials[0]["accuracy"] == eval_accuracy(trainer, rows[:12])


def test_auto_counts_the_labeled_tokens_of_token_classification(make_trainer, tmp_path, base_folder, tokenizer):
    rows = []
    for row in sentences(12, 2):
        labels = [i % 3 for i in row["input_ids"]]
        rows.append({**row, "labels": [-100, *labels[1:-1], -100]})
    torch.manual_seed(1)
    drifted(BertForTokenClassification.from_pretrained(base_folder, num_labels=3)).save_pretrained(
        tmp_path / "suspect"
    )
    trainer = make_trainer(
        model=BertForTokenClassification.from_pretrained(tmp_path / "suspect"),
        args=frozen(tmp_path),
        train_dataset=rows,
        eval_dataset=rows,
        mixing_config=mixing("auto", candidate_ratios=[0.4], max_accuracy_drop=1.0),
    )
    trainer.train()
    prediction = trainer.predict(rows)
    counted = prediction.label_ids != -100
    right = (prediction.predictions.argmax(-1) == prediction.label_ids)[counted]
    assert trainer.ratio_search.trials[0]["accuracy"] == right.mean()
