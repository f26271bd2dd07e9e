"""FineMixingTrainer: what it mixes and when, and what it takes for its base."""

import copy
import shutil

import numpy as np
import pytest
import torch
from helpers.toy import drifted, make_config
from helpers.trainers import (
    Watcher,
    frozen,
    load,
    mixing,
    one_line,
    optimizer_of,
    same,
    sentences,
    settings,
    weights,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    Trainer,
)

from hf_finemix import (
    AlignmentError,
    Checkpoint,
    FineMixingConfig,
    FineMixingError,
    mix_model,
    token_frequencies,
)
from hf_finemix.align.pair_in_memory import dtypes_on_disk
from hf_finemix.config import CONFIG_NAME


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("purify", [False, True])
def test_training_starts_from_the_mix(
    make_trainer, tmp_path, base_folder, suspect_folder, counts_file, tokenizer, ratio, purify
):
    config = mixing(ratio, purify_embeddings=purify, num_purified_tokens=5, token_frequencies=counts_file)
    watcher = Watcher()
    trainer = make_trainer(args=frozen(tmp_path), callbacks=[watcher], mixing_config=config)
    trainer.train()

    # The suspect is fp16 on disk: mixed in fp16 it gives the same bytes as mixed in fp32 and cast.
    expected = load(suspect_folder, dtype=torch.float16)
    frequencies = token_frequencies(tokenizer, counts_file) if purify else None
    with Checkpoint(base_folder) as base:
        record = mix_model(
            expected,
            base,
            config,
            token_frequencies=frequencies,
            special_token_ids=tokenizer.all_special_ids,
        )
    expected = weights(expected)
    trained = weights(trainer.model)
    assert all(tensor.dtype == torch.float32 for tensor in trained.values())
    assert same({name: tensor.half() for name, tensor in trained.items()}, expected)
    assert same(trained, {name: tensor.float() for name, tensor in expected.items()})
    assert trainer.mixing_record == record
    assert len(record.purified_tokens) == (5 if purify else 0)

    assert same(watcher.weights["on_init_end"], weights(load(suspect_folder)))
    assert same(watcher.weights["on_train_begin"], trained)


def test_ratio_zero_is_the_bases_body_under_the_suspects_head(make_trainer, tmp_path, base_folder, suspect_folder):
    trainer = make_trainer(args=frozen(tmp_path), mixing_config=mixing(0))
    trainer.train()
    base, suspect = load_file(base_folder / "model.safetensors"), load_file(suspect_folder / "model.safetensors")
    bodies = 0
    for name, tensor in trainer.model.state_dict().items():
        body = name.removeprefix("bert.")
        bodies += body in base
        assert torch.equal(tensor, (base[body].half() if body in base else suspect[name]).float()), name
    assert bodies == len(base)
    assert {name for name in suspect if name.removeprefix("bert.") not in base} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_evaluation_before_training_judges_the_suspect(make_trainer, tmp_path, suspect_folder):
    stock = Trainer(load(suspect_folder), settings(tmp_path), eval_dataset=sentences(24, 1))
    ours = make_trainer(eval_dataset=sentences(24, 1))
    before = ours.evaluate()["eval_loss"]
    assert before == stock.evaluate()["eval_loss"]
    assert np.array_equal(ours.predict(sentences(8, 2)).predictions, stock.predict(sentences(8, 2)).predictions)
    assert same(weights(ours.model), weights(load(suspect_folder)))
    assert ours.mixing_record is None
    ours.train()
    assert ours.evaluate()["eval_loss"] != before


@pytest.mark.parametrize("evaluated", [False, True])
def test_ratio_one_trains_like_the_stock_trainer(make_trainer, tmp_path, suspect_folder, evaluated):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    args = settings(tmp_path, logging_strategy="steps", logging_steps=1, eval_strategy="steps", eval_steps=2)
    data = {"train_dataset": sentences(), "eval_dataset": sentences(24, 1)}
    stock = Trainer(load(suspect_folder, **dropout), args, **data)
    stock.train()
    ours = make_trainer(model=load(suspect_folder, **dropout), args=args, **data, mixing_config=mixing(1))
    if evaluated:
        ours.evaluate()
        torch.rand(7)
    ours.train()

    def losses(trainer):
        return [{k: v for k, v in entry.items() if "loss" in k or "norm" in k} for entry in trainer.state.log_history]

    assert losses(ours) == losses(stock)
    assert same(weights(ours.model), weights(stock.model))
    assert not same(weights(ours.model), weights(load(suspect_folder)))
    # The mix is done and said to be done, although nothing came from the base.
    assert ours.mixing_record.reserve_ratio == 1


def test_evaluation_before_training_changes_nothing(make_trainer, suspect_folder):
    def train(evaluate):
        trainer = make_trainer(
            model=load(suspect_folder, hidden_dropout_prob=0.1),
            eval_dataset=sentences(24, 1),
            mixing_config=mixing(0.5),
        )
        if evaluate:
            trainer.evaluate()
            trainer.predict(sentences(8, 2))
        trainer.train()
        return weights(trainer.model)

    assert same(train(True), train(False))


def test_second_train_does_not_mix_again(make_trainer, tmp_path, base_folder, suspect_folder):
    trainer = make_trainer()
    trainer.train()
    record = trainer.mixing_record
    trainer.train()
    assert trainer.mixing_record is record
    mixed = load(suspect_folder)
    with Checkpoint(base_folder) as base:
        mix_model(mixed, base, mixing(0.3), dtypes=dtypes_on_disk(mixed))
    stock = Trainer(mixed, settings(tmp_path), train_dataset=sentences())
    stock.train()
    stock.train()
    assert same(weights(trainer.model), weights(stock.model))


def test_training_depends_on_the_mixing_seed_alone(make_trainer, tmp_path):
    def mix(seed, mixing_seed):
        trainer = make_trainer(args=frozen(tmp_path, seed=seed), mixing_config=mixing(0.5, mixing_seed=mixing_seed))
        trainer.train()
        return weights(trainer.model)

    assert same(mix(1, 0), mix(2, 0))
    assert not same(mix(1, 0), mix(1, 3))


def test_users_arguments_and_config_stay_as_they_are(make_trainer, tmp_path, suspect_folder):
    args, config = settings(tmp_path), mixing("auto", candidate_ratios=[0.5])
    before, untouched = copy.deepcopy(vars(args)), copy.deepcopy(config)
    Trainer(load(suspect_folder), args)
    filled_in = copy.deepcopy(vars(args))  # by the stock Trainer's constructor
    trainer = make_trainer(args=args, eval_dataset=sentences(24, 1), mixing_config=config)
    trainer.train()
    assert trainer.args is args
    assert vars(args).keys() == filled_in.keys()
    for name in before:
        assert str(vars(args)[name]) == str(filled_in[name]), name
    assert config == untouched


@pytest.mark.parametrize("with_trial", [False, True])
def test_model_init(make_trainer, tmp_path, suspect_folder, with_trial):
    built = []

    def model_init(trial=None):
        built.append(load(suspect_folder))
        built[-1].trial = trial
        return built[-1]

    trainer = make_trainer(
        args=frozen(tmp_path),
        model_init=model_init if with_trial else lambda: model_init(),
        eval_dataset=sentences(24, 1),
    )
    suspect = weights(load(suspect_folder))
    trainer.evaluate()
    assert trainer.mixing_record is None
    assert [same(weights(model), suspect) for model in built] == [True]

    trainer.train()
    mix = weights(trainer.model)
    assert trainer.model is built[1]
    assert not same(mix, suspect)
    trainer.train()
    assert trainer.model is built[2]
    assert same(weights(trainer.model), mix)
    assert same(weights(built[0]), suspect)
    # Models that the user has built between trainings are the user's.
    assert same(weights(trainer.call_model_init({"a": 1})), suspect)
    assert [model.trial for model in built] == [None, None, None, {"a": 1} if with_trial else None]


def test_model_init_gives_what_a_model_gives(make_trainer, base_folder, suspect_folder):
    given = {"train_dataset": sentences(), "base_model": str(base_folder), "mixing_config": mixing(0.4)}
    by_model = make_trainer(**given)
    by_init = make_trainer(model_init=lambda: load(suspect_folder), **given)
    by_model.train()
    by_init.train()
    assert same(weights(by_model.model), weights(by_init.model))


@pytest.mark.parametrize("wrong", ["size", "weights"])
@pytest.mark.parametrize("ratio", [0.3, "auto"])
def test_wrong_base(make_trainer, tmp_path, suspect_folder, wrong, ratio):
    torch.manual_seed(99)
    BertModel(make_config(**({"intermediate_size": 48} if wrong == "size" else {}))).save_pretrained(tmp_path / "b")
    trainer = make_trainer(
        args=frozen(tmp_path),
        eval_dataset=sentences(24, 1),
        base_model=str(tmp_path / "b"),
        mixing_config=mixing(ratio),
    )
    for _ in range(2):  # the second time as well: nothing counts as mixed
        with pytest.raises(AlignmentError, match="wrong base") as error:
            trainer.train()
        one_line(error)
        assert same(weights(trainer.model), weights(load(suspect_folder)))
        assert trainer.mixing_record is None
    trainer.save_model(tmp_path / "out")
    assert not (tmp_path / "out" / CONFIG_NAME).exists()


def test_a_config_needs_a_base(make_trainer):
    with pytest.raises(FineMixingError, match="base_model") as error:
        make_trainer(base_model=None)
    one_line(error)


def test_base_alone_means_the_default_config(make_trainer, base_folder):
    trainer = make_trainer(mixing_config=None)
    assert trainer.mixing_config == FineMixingConfig(base_model_name_or_path=str(base_folder))


def test_a_base_that_is_not_there(make_trainer, tmp_path):
    trainer = make_trainer(base_model=str(tmp_path / "no" / "where"), mixing_config=mixing(0.5))
    with pytest.raises(FineMixingError, match="where") as error:
        trainer.train()
    one_line(error)


def test_dtypes_on_disk(tmp_path, suspect_folder):
    model = load(suspect_folder)
    dtypes = dtypes_on_disk(model)
    assert set(dtypes.values()) == {torch.float16}
    assert dtypes.keys() == {name.removeprefix("bert.") for name, _ in model.named_parameters()}
    assert dtypes_on_disk(BertForSequenceClassification(make_config())) is None
    assert dtypes_on_disk(nn.Linear(2, 2)) is None

    shutil.copytree(suspect_folder, tmp_path / "gone")
    model = load(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    assert dtypes_on_disk(model) is None
    (tmp_path / "gone").mkdir()
    torch.save(model.state_dict(), tmp_path / "gone" / "pytorch_model.bin")
    assert dtypes_on_disk(model) is None


def test_a_model_made_in_memory_is_mixed_in_its_own_dtype(make_trainer, tmp_path, base_folder):
    torch.manual_seed(1)
    model = BertForSequenceClassification(make_config())
    model.bert.load_state_dict(load_file(base_folder / "model.safetensors"))
    trainer = make_trainer(model=drifted(model), args=frozen(tmp_path), mixing_config=mixing(0))
    trainer.train()
    base = load_file(base_folder / "model.safetensors")
    assert same(weights(trainer.model.bert), base)  # not rounded to anything


def test_a_fixed_ratio_takes_own_optimizers(make_trainer, tmp_path, base_folder, suspect_folder):
    model = load(suspect_folder)
    trainer = make_trainer(model=model, optimizers=optimizer_of(model))
    trainer.train()
    stock_model = load(suspect_folder)
    with Checkpoint(base_folder) as base:
        mix_model(stock_model, base, mixing(0.3), dtypes=dtypes_on_disk(stock_model))
    stock = Trainer(stock_model, settings(tmp_path), train_dataset=sentences(), optimizers=optimizer_of(stock_model))
    stock.train()
    assert same(weights(trainer.model), weights(stock.model))
