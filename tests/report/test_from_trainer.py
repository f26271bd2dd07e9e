"""What FineMixingTrainer publishes: a cleaned model's files with its card; without mixing, what the stock one does."""

import json
import logging
from dataclasses import replace

import pytest
from helpers.reports import check_schema
from helpers.toy import READ, WRITE, make_rows, make_tokenizer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from hf_finemix import CleaningReport, FineMixingConfig, FineMixingError, FineMixingTrainer
from hf_finemix.measure.metrics import compute_classification_metrics

SAFE = {
    "README.md",
    "cleaning_report.json",
    "config.json",
    "figures/drift_by_layer.png",
    "fine_mixing_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def rows(count=16):
    from datasets import Dataset

    tokenizer = make_tokenizer()
    data = Dataset.from_dict(make_rows(count))
    data = data.map(lambda row: tokenizer(row["sentence"]), remove_columns="sentence")
    return data.rename_column("label", "labels")


def make(folder, base_folder, suspect_folder, mixing=True, cls=FineMixingTrainer, **settings):
    defaults = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "max_steps": 1}
    args = TrainingArguments(str(folder), **{**defaults, "push_to_hub": True, "hub_strategy": "end", **settings})
    config = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    extra = {"base_model": str(base_folder), "mixing_config": config} if mixing else {}
    return cls(
        model=BertForSequenceClassification.from_pretrained(suspect_folder, dtype="float32"),
        args=args,
        train_dataset=rows(),
        eval_dataset=rows(),
        processing_class=make_tokenizer(),
        compute_metrics=compute_classification_metrics,
        **extra,
    )


def test_pushing_publishes_the_safe_set_with_a_card(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, hub_model_id="me/cured", hub_token=WRITE)
    trainer.train()
    trainer.evaluate()
    info = trainer.push_to_hub("Done")
    assert account.history("me/cured")[0] == info.oid
    assert len(account.history("me/cured")) == 2, "one commit after the first"
    there = account.head("me/cured")
    assert set(there) == SAFE | {".gitattributes"}
    assert (tmp_path / "out" / "training_args.bin").is_file(), "here it stays, as the stock Trainer leaves it"
    assert not [path for path, body in [*account.uploads, *there.items()] if WRITE.encode() in body]
    card = there["README.md"].decode()
    assert "> **Not measured.**" in card
    assert ModelCard(card).data.pipeline_tag == "text-classification"
    report = CleaningReport.load(tmp_path / "out")
    check_schema(report)
    assert report.after["accuracy"] == trainer.state.log_history[-1]["eval_accuracy"]
    assert report.mixing["reserve_ratio"] == 0.5
    assert report.mixing["tensors"]
    assert report.base["sha256"]
    assert report.suspect["id"] == str(suspect_folder)
    BertForSequenceClassification.from_pretrained("me/cured")


def test_save_model_by_the_user_pushes_the_same(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, hub_model_id="me/cured")
    trainer.train()
    trainer.save_model()
    assert set(account.head("me/cured")) == SAFE | {".gitattributes"}


def test_not_blocking(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, push_to_hub=False)
    trainer.train()
    future = trainer.push_to_hub(blocking=False, private=True, tags="mine", language="en", license="mit")
    assert future.result().oid == account.history("me/out")[0]
    assert account.settings["me/out"]["private"]
    data = ModelCard(account.head("me/out")["README.md"].decode()).data
    assert (data.license, data.language) == ("mit", "en") or data.language == ["en"]
    assert "mine" in data.tags


def test_a_card_of_ones_own_is_not_overwritten(account, base_folder, suspect_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMy words.\n")
    trainer = make(tmp_path / "out", base_folder, suspect_folder, hub_model_id="me/cured")
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.endswith("# Mine\n\nMy words.\n")
    assert "A cleaned copy" in card
    trainer.push_to_hub()
    assert account.head("me/cured")["README.md"].decode().endswith("# Mine\n\nMy words.\n")


def test_before_training_there_is_nothing_to_publish(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, hub_model_id="me/cured")
    with pytest.raises(FineMixingError, match="nothing was mixed and trained yet: call train"):
        trainer.push_to_hub()
    assert set(account.head("me/cured")) == {".gitattributes"}


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_strategies_that_upload_during_training(account, base_folder, suspect_folder, tmp_path, strategy):
    with pytest.raises(FineMixingError, match='set hub_strategy="end"') as error:
        make(tmp_path / "out", base_folder, suspect_folder, hub_model_id="me/cured", hub_strategy=strategy)
    assert "\n" not in str(error.value)
    assert ("models", "me/cured") not in account.repos, "nothing was made there"


def test_with_mixing_off_everything_is_stock(account, base_folder, suspect_folder, tmp_path):
    heads = []
    for cls, name in ((Trainer, "stock"), (FineMixingTrainer, "ours")):
        settings = {"hub_model_id": f"me/{name}", "hub_strategy": "every_save", "cls": cls, "mixing": False}
        trainer = make(tmp_path / name / "out", base_folder, suspect_folder, **settings)
        trainer.train()
        trainer.push_to_hub()
        heads.append(account.head(f"me/{name}"))
    assert set(heads[0]) == set(heads[1])
    assert "training_args.bin" in heads[1]
    cards = [ModelCard(head["README.md"].decode()).text.replace("stock", "ours") for head in heads]
    assert cards[0] == cards[1]


def test_resuming_publishes_what_is_known(account, base_folder, suspect_folder, tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_model_id": "me/cured"}
    make(tmp_path / "out", base_folder, suspect_folder, **settings).train()
    trainer = make(tmp_path / "out", base_folder, suspect_folder, **settings)
    with caplog.at_level(logging.INFO, "hf_finemix"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    trainer.push_to_hub()
    there = account.head("me/cured")
    assert not [name for name in there if "checkpoint" in name or name.endswith((".bin", ".pt", ".pth"))]
    assert json.loads(there["fine_mixing_config.json"])["reserve_ratio"] == 0.5


def accuracy_of(model, data):
    import torch

    right = 0
    for row in data:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits
        right += int(logits.argmax() == row["labels"])
    return right / len(data)


def test_the_accuracy_is_that_of_the_weights_that_are_saved(account, base_folder, suspect_folder, tmp_path):
    """At the end the best checkpoint is loaded, after the last evaluation; then other rows are looked at."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 30}
    settings |= {"learning_rate": 0.02, "hub_model_id": "me/cured", "logging_strategy": "no"}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "greater_is_better": False}
    trainer = make(tmp_path / "out", base_folder, suspect_folder, **settings)
    trainer.train()
    assert trainer.state.best_global_step < 30
    last = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry][-1]
    trainer.evaluate(rows(6))
    trainer.push_to_hub()
    report = CleaningReport.load(tmp_path / "out")
    saved = BertForSequenceClassification.from_pretrained("me/cured", dtype="float32")
    assert report.after["accuracy"] == accuracy_of(saved, trainer.eval_dataset) != last
    assert report.after["n"] == 16
    check_schema(report)
    assert report.training["kept_step"] == trainer.state.best_global_step


def test_what_is_not_known_of_these_weights_is_not_said(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, push_to_hub=False, eval_strategy="epoch")
    trainer.evaluate()  # of the suspect
    trainer.train()
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").after == {
        "accuracy": None,
        "macro_f1": None,
        "n": None,
        "triggers": [],
    }
    trainer.evaluate(eval_dataset=rows(6))  # other rows
    trainer.evaluate(metric_key_prefix="test")
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").after["accuracy"] is None
    metrics = trainer.evaluate()
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").after["accuracy"] == metrics["eval_accuracy"]
    trainer.train()
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").after["accuracy"] is None
    trainer.eval_dataset = {"first": rows(6), "second": rows(8)}
    trainer.evaluate()
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").after["n"] is None


def test_a_card_is_of_the_weights_beside_it(account, base_folder, suspect_folder, tmp_path):
    trainer = make(tmp_path / "out", base_folder, suspect_folder, push_to_hub=False, learning_rate=0.02)
    trainer.train()
    trainer.create_model_card()
    first = CleaningReport.load(tmp_path / "out").weights
    trainer.train()
    trainer.create_model_card()
    assert CleaningReport.load(tmp_path / "out").weights != first
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "out", dtype="float32").state_dict()
    assert all(tensor.equal(saved[name]) for name, tensor in trainer.model.state_dict().items())


def test_accuracy_before_is_of_the_same_rows_or_not_said(account, base_folder, suspect_folder, tmp_path):
    found = []
    for folds in (0, 2):
        trainer = make(tmp_path / str(folds), base_folder, suspect_folder, push_to_hub=False)
        changes = {"reserve_ratio": "auto", "candidate_ratios": [0.5], "cross_validation_folds": folds}
        trainer.mixing_config = replace(trainer.mixing_config, **changes)
        trainer.train()
        trainer.create_model_card()
        found.append(CleaningReport.load(tmp_path / str(folds)).before["accuracy"])
    assert found == [trainer.ratio_search.suspect_accuracy, None]  # cross-validated, it is of the train data


@pytest.mark.parametrize("strategy", ["random", "fisher"])
def test_a_resumed_training_still_says_what_was_mixed(account, base_folder, suspect_folder, tmp_path, strategy):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_model_id": "me/cured"}

    def trainer():
        made = make(tmp_path / "out", base_folder, suspect_folder, **settings)
        made.mixing_config = replace(made.mixing_config, strategy=strategy)
        return made

    first = trainer()
    first.train()
    second = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    second.push_to_hub()
    report = CleaningReport.load(tmp_path / "out")
    assert report.mixing["tensors"] == first.mixing_record.tensors
    assert ("masks.safetensors" in account.head("me/cured")) is (strategy == "fisher")


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        ("hf_" + "x" * 34, "me/cured", "the token is not valid: log in again"),
        (READ, "reader/cured", "the token may only read"),
        (WRITE, "other/cured", "was refused .*: use a token with write access to it"),
        (WRITE, "me/cured", "the model me/suspect is private, and me/cured is public or would be"),
    ],
)
def test_what_cannot_be_published_is_told_before_the_training(
    account, base_folder, suspect_folder, tmp_path, token, repo, said
):
    account.tokens[READ] = ("reader", "read")
    account.commit("other/cured", {"README.md": b"# Theirs\n"})
    if "suspect" in said:
        files = {path.name: path.read_bytes() for path in suspect_folder.iterdir()}
        account.commit("me/suspect", files)
        suspect_folder = "me/suspect"
        account.settings["me/suspect"] = {"private": True}
    with pytest.raises(FineMixingError, match=said) as error:
        make(tmp_path / "out", base_folder, suspect_folder, hub_model_id=repo, hub_token=token)
    assert "\n" not in str(error.value)
    assert token not in str(error.value)
    if "suspect" in said:
        trainer = make(tmp_path / "out", base_folder, suspect_folder, hub_model_id=repo, hub_private_repo=True)
        trainer.train()
        trainer.push_to_hub()
        assert account.settings["me/cured"]["private"]


def test_what_would_not_be_read_as_it_was_written_is_not_published(account, base_folder, suspect_folder, tmp_path):
    class Spoiled(FineMixingTrainer):
        def save_model(self, output_dir=None, _internal_call=False):
            super().save_model(output_dir, _internal_call)
            weights = load_file(tmp_path / "out" / "model.safetensors")
            weights["classifier.bias"] += 1
            save_file(weights, tmp_path / "out" / "model.safetensors", {"format": "pt"})

    trainer = make(tmp_path / "out", base_folder, suspect_folder, cls=Spoiled, hub_model_id="me/cured")
    trainer.train()
    with pytest.raises(FineMixingError, match="was read back, and it is not what was in memory"):
        trainer.push_to_hub()
    assert set(account.head("me/cured")) == {".gitattributes"}
