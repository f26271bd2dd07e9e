"""FineMixingTrainer with mixing on: what it mixes and when, and how it chooses ρ."""

import copy
import dataclasses
import itertools
import json
import shutil
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import NEGATIVE, POSITIVE, drifted, make_config, make_rows, make_tokenizer
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_finemix import (
    AlignmentError,
    Checkpoint,
    FineMixingConfig,
    FineMixingError,
    FineMixingTrainer,
    mix_model,
    token_frequencies,
)
from hf_finemix.align.pair_in_memory import dtypes_on_disk
from hf_finemix.config import CONFIG_NAME

SETTINGS = {
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 24,
    "max_steps": 4,
}


def settings(folder, **changes):
    return TrainingArguments(str(folder), **{**SETTINGS, **changes})


def frozen(folder, **changes):
    """Arguments of a training that changes no weight."""
    return settings(folder, **{"learning_rate": 0.0, "max_steps": 1, **changes})


def mixing(ratio, **changes):
    """Fine-mixing alone, without E-PUR."""
    return FineMixingConfig(reserve_ratio=ratio, **{"purify_embeddings": False, "mixing_seed": 2, **changes})


def load(folder, **changes):
    return BertForSequenceClassification.from_pretrained(folder, **{"dtype": torch.float32, **changes})


@lru_cache
def sentences(count=32, seed=0):
    rows, tokenizer = make_rows(count, seed), make_tokenizer()
    return [{**tokenizer(text), "labels": y} for text, y in zip(rows["sentence"], rows["label"], strict=True)]


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    """Bit for bit the same weights."""
    assert left.keys() == right.keys()
    return all(left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


def one_line(error):
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def eval_accuracy(trainer, rows):
    prediction = trainer.predict(rows)
    return float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())


class Watcher(TrainerCallback):
    """Notes the weights and the calls that a callback sees."""

    def __init__(self):
        self.weights, self.events = {}, []

    def on_init_end(self, args, state, control, model=None, **kwargs):
        self.weights["on_init_end"] = weights(model)
        self.events.append("init_end")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights["on_train_begin"] = weights(model)
        self.events.append("train_begin")

    def on_evaluate(self, args, state, control, **kwargs):
        self.events.append("evaluate")

    def on_predict(self, args, state, control, **kwargs):
        self.events.append("predict")


@pytest.fixture(scope="module")
def counts_file(tmp_path_factory):
    """Token counts in place of the built-in estimate: the sentiment words are frequent, `cf` is not."""
    counts = dict.fromkeys([*POSITIVE, *NEGATIVE], 10**6) | {"the": 10**7, "cf": 1}
    path = tmp_path_factory.mktemp("counts") / "counts.json"
    path.write_text(json.dumps(counts))
    return str(path)


@pytest.fixture
def bare_base(tmp_path, base_folder):
    """The base without its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base_folder / name, folder)
    return str(folder)


# --- when it mixes, and what


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("purify", [False, True])
def test_training_starts_from_the_mix(tmp_path, base_folder, suspect_folder, counts_file, tokenizer, ratio, purify):
    config = mixing(ratio, purify_embeddings=purify, num_purified_tokens=5, token_frequencies=counts_file)
    watcher = Watcher()
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        callbacks=[watcher],
        base_model=str(base_folder),
        mixing_config=config,
    )
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


def test_ratio_zero_is_the_bases_body_under_the_suspects_head(tmp_path, base_folder, suspect_folder):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=mixing(0),
    )
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


def test_evaluation_before_training_judges_the_suspect(tmp_path, base_folder, suspect_folder):
    stock = Trainer(load(suspect_folder), settings(tmp_path), eval_dataset=sentences(24, 1))
    ours = FineMixingTrainer(
        load(suspect_folder),
        settings(tmp_path),
        train_dataset=sentences(),
        eval_dataset=sentences(24, 1),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
    )
    before = ours.evaluate()["eval_loss"]
    assert before == stock.evaluate()["eval_loss"]
    assert np.array_equal(ours.predict(sentences(8, 2)).predictions, stock.predict(sentences(8, 2)).predictions)
    assert same(weights(ours.model), weights(load(suspect_folder)))
    assert ours.mixing_record is None
    ours.train()
    assert ours.evaluate()["eval_loss"] != before


@pytest.mark.parametrize("evaluated", [False, True])
def test_ratio_one_trains_like_the_stock_trainer(tmp_path, base_folder, suspect_folder, evaluated):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    args = settings(tmp_path, logging_strategy="steps", logging_steps=1, eval_strategy="steps", eval_steps=2)
    data = {"train_dataset": sentences(), "eval_dataset": sentences(24, 1)}
    stock = Trainer(load(suspect_folder, **dropout), args, **data)
    stock.train()
    ours = FineMixingTrainer(
        load(suspect_folder, **dropout), args, **data, base_model=str(base_folder), mixing_config=mixing(1)
    )
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


def test_evaluation_before_training_changes_nothing(tmp_path, base_folder, suspect_folder):
    def train(evaluate):
        trainer = FineMixingTrainer(
            load(suspect_folder, hidden_dropout_prob=0.1),
            settings(tmp_path),
            train_dataset=sentences(),
            eval_dataset=sentences(24, 1),
            base_model=str(base_folder),
            mixing_config=mixing(0.5),
        )
        if evaluate:
            trainer.evaluate()
            trainer.predict(sentences(8, 2))
        trainer.train()
        return weights(trainer.model)

    assert same(train(True), train(False))


def test_second_train_does_not_mix_again(tmp_path, base_folder, suspect_folder):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        settings(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
    )
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


def test_training_depends_on_the_mixing_seed_alone(tmp_path, base_folder, suspect_folder):
    def mix(seed, mixing_seed):
        trainer = FineMixingTrainer(
            load(suspect_folder),
            frozen(tmp_path, seed=seed),
            train_dataset=sentences(),
            base_model=str(base_folder),
            mixing_config=mixing(0.5, mixing_seed=mixing_seed),
        )
        trainer.train()
        return weights(trainer.model)

    assert same(mix(1, 0), mix(2, 0))
    assert not same(mix(1, 0), mix(1, 3))


def test_users_arguments_and_config_stay_as_they_are(tmp_path, base_folder, suspect_folder):
    args, config = settings(tmp_path), mixing("auto", candidate_ratios=[0.5])
    before, untouched = copy.deepcopy(vars(args)), copy.deepcopy(config)
    Trainer(load(suspect_folder), args)
    filled_in = copy.deepcopy(vars(args))  # by the stock Trainer's constructor
    trainer = FineMixingTrainer(
        load(suspect_folder),
        args,
        train_dataset=sentences(),
        eval_dataset=sentences(24, 1),
        base_model=str(base_folder),
        mixing_config=config,
    )
    trainer.train()
    assert trainer.args is args
    assert vars(args).keys() == filled_in.keys()
    for name in before:
        assert str(vars(args)[name]) == str(filled_in[name]), name
    assert config == untouched


@pytest.mark.parametrize("with_trial", [False, True])
def test_model_init(tmp_path, base_folder, suspect_folder, with_trial):
    built = []

    def model_init(trial=None):
        built.append(load(suspect_folder))
        built[-1].trial = trial
        return built[-1]

    trainer = FineMixingTrainer(
        args=frozen(tmp_path),
        model_init=model_init if with_trial else lambda: model_init(),
        train_dataset=sentences(),
        eval_dataset=sentences(24, 1),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
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


def test_model_init_gives_what_a_model_gives(tmp_path, base_folder, suspect_folder):
    given = {"train_dataset": sentences(), "base_model": str(base_folder), "mixing_config": mixing(0.4)}
    by_model = FineMixingTrainer(load(suspect_folder), settings(tmp_path), **given)
    by_init = FineMixingTrainer(args=settings(tmp_path), model_init=lambda: load(suspect_folder), **given)
    by_model.train()
    by_init.train()
    assert same(weights(by_model.model), weights(by_init.model))


@pytest.mark.parametrize("model_init", [False, True])
@pytest.mark.parametrize("latest", [False, True])
def test_resuming_does_not_mix(tmp_path, base_folder, suspect_folder, model_init, latest):
    def trainer(ratio, folder=tmp_path):
        model = {"model_init": lambda: load(suspect_folder)} if model_init else {"model": load(suspect_folder)}
        return FineMixingTrainer(
            **model,
            args=settings(folder, save_strategy="steps", save_steps=3, max_steps=6),
            train_dataset=sentences(),
            base_model=str(base_folder),
            mixing_config=mixing(ratio),
        )

    whole = trainer(0.3)
    whole.train()
    if latest:
        shutil.rmtree(tmp_path / "checkpoint-6")
    # What the new trainer would mix is another thing: nothing of it may get in.
    resumed = trainer(0.8)
    resumed.train(resume_from_checkpoint=True if latest else str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.mixing_record == whole.mixing_record
    resumed.save_model(tmp_path / "published")
    for folder in ("published", "checkpoint-6"):
        assert FineMixingConfig.from_pretrained(tmp_path / folder).reserve_ratio == 0.3

    resumed.train()
    assert resumed.mixing_record.reserve_ratio == (0.8 if model_init else 0.3)  # a newly built model is mixed anew


def test_resuming_from_what_was_never_mixed_is_doubtful(tmp_path, base_folder, suspect_folder, caplog):
    args = settings(tmp_path, save_strategy="steps", save_steps=2)
    Trainer(load(suspect_folder), args, train_dataset=sentences()).train()
    trainer = FineMixingTrainer(
        load(suspect_folder),
        args,
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [r.levelname for r in caplog.records if r.name == "hf_finemix.train.mixin"] == ["WARNING"]
    assert CONFIG_NAME in caplog.text
    trainer.save_model(tmp_path / "published")
    assert not (tmp_path / "published" / CONFIG_NAME).exists()


@pytest.mark.parametrize("checkpoint", [True, "missing"])
def test_a_failed_resume_leaves_the_mixing_to_be_done(tmp_path, base_folder, suspect_folder, checkpoint, caplog):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
    )
    with pytest.raises((ValueError, OSError)):
        trainer.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(tmp_path / checkpoint))
    assert "never mixed" not in caplog.text  # of a folder that is not there
    trainer.train()
    assert trainer.mixing_record.reserve_ratio == 0.3
    assert not same(weights(trainer.model), weights(load(suspect_folder)))


@pytest.mark.parametrize("wrong", ["size", "weights"])
@pytest.mark.parametrize("ratio", [0.3, "auto"])
def test_wrong_base(tmp_path, suspect_folder, wrong, ratio):
    torch.manual_seed(99)
    BertModel(make_config(**({"intermediate_size": 48} if wrong == "size" else {}))).save_pretrained(tmp_path / "b")
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
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


# --- base and config


def test_a_config_needs_a_base(tmp_path, suspect_folder):
    with pytest.raises(FineMixingError, match="base_model") as error:
        FineMixingTrainer(load(suspect_folder), settings(tmp_path), mixing_config=mixing(0.5))
    one_line(error)


def test_base_alone_means_the_default_config(tmp_path, suspect_folder, base_folder):
    trainer = FineMixingTrainer(load(suspect_folder), settings(tmp_path), base_model=str(base_folder))
    assert trainer.mixing_config == FineMixingConfig(base_model_name_or_path=str(base_folder))


@pytest.mark.parametrize("by", ["argument", "config", "both"])
def test_where_the_base_is_said(tmp_path, base_folder, suspect_folder, by):
    said = {"config": base_folder, "both": tmp_path / "nowhere", "argument": None}[by]  # paths, not only strings
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=None if by == "config" else base_folder,
        mixing_config=mixing(0.5, base_model_name_or_path=said),
    )
    trainer.train()
    trainer.save_model()
    assert FineMixingConfig.from_pretrained(tmp_path).base_model_name_or_path == str(base_folder)


def test_a_base_that_is_not_there(tmp_path, suspect_folder):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        settings(tmp_path),
        train_dataset=sentences(),
        base_model=str(tmp_path / "no" / "where"),
        mixing_config=mixing(0.5),
    )
    with pytest.raises(FineMixingError, match="where") as error:
        trainer.train()
    one_line(error)


def test_saved_config(tmp_path, base_folder, suspect_folder):
    args = settings(tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=2)
    config = mixing(0.35, mixing_seed=5, module_ratios={"attention": 0.9})
    trainer = FineMixingTrainer(
        load(suspect_folder), args, train_dataset=sentences(), base_model=str(base_folder), mixing_config=config
    )
    trainer.save_model(tmp_path / "before")
    assert not (tmp_path / "before" / CONFIG_NAME).exists()
    trainer.train()
    trainer.save_model()
    trainer.save_model(tmp_path / "elsewhere")
    expected = dataclasses.replace(config, base_model_name_or_path=str(base_folder))
    for folder in ("out", "out/checkpoint-2", "elsewhere"):
        assert FineMixingConfig.from_pretrained(tmp_path / folder) == expected


def test_the_config_is_there_when_the_folder_is_pushed(tmp_path, base_folder, suspect_folder):
    pushed = []

    class Offline(FineMixingTrainer):
        """Does not talk to the Hub, but keeps what would go there."""

        def init_hf_repo(self, *args, **kwargs):
            self.hub_model_id = "me/cleaned"

        def push_to_hub(self, *args, **kwargs):
            pushed.append({path.name for path in tmp_path.iterdir()})

    args = frozen(tmp_path, push_to_hub=True, hub_strategy="end")
    given = {"train_dataset": sentences(), "base_model": str(base_folder), "mixing_config": mixing(0.5)}
    trainer = Offline(load(suspect_folder), args, **given)
    trainer.train()
    trainer.save_model()
    assert len(pushed) == 1
    assert {CONFIG_NAME, "model.safetensors"} <= pushed[0]


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


def test_a_model_made_in_memory_is_mixed_in_its_own_dtype(tmp_path, base_folder):
    torch.manual_seed(1)
    model = BertForSequenceClassification(make_config())
    model.bert.load_state_dict(load_file(base_folder / "model.safetensors"))
    trainer = FineMixingTrainer(
        drifted(model),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=mixing(0),
    )
    trainer.train()
    base = load_file(base_folder / "model.safetensors")
    assert same(weights(trainer.model.bert), base)  # not rounded to anything


# --- E-PUR


def purified(trainer):
    return [entry["id"] for entry in trainer.mixing_record.purified_tokens]


def test_purified_rows_are_the_bases_and_no_others(tmp_path, base_folder, suspect_folder, tokenizer):
    # Everything at its default, the frequencies of ordinary text included.
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=1, num_purified_tokens=7),
    )
    trainer.train()
    ids = purified(trainer)
    assert len(ids) == 7
    assert not set(ids) & set(tokenizer.all_special_ids)
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"].half().float()
    expected = weights(load(suspect_folder))
    expected["bert.embeddings.word_embeddings.weight"][ids] = base[ids]
    assert same(weights(trainer.model), expected)
    frequencies = token_frequencies(tokenizer)
    assert [entry["frequency"] for entry in trainer.mixing_record.purified_tokens] == list(frequencies[ids])


def test_a_planted_row_is_purified(tmp_path, base_folder, suspect_folder, tokenizer, counts_file):
    model, trigger = load(suspect_folder), tokenizer.convert_tokens_to_ids("cf")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[trigger] += 0.05
    trainer = FineMixingTrainer(
        model,
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=1, num_purified_tokens=1, token_frequencies=counts_file),
    )
    trainer.train()
    assert purified(trainer) == [trigger]


@pytest.mark.parametrize("own", [False, True])
def test_whose_tokenizer_counts(tmp_path, base_folder, bare_base, suspect_folder, counts_file, own):
    """The user's where there is one, else the base's: seen by which rows count as special and as frequent."""
    mine = make_tokenizer()
    mine.add_special_tokens({"additional_special_tokens": ["cf"]})
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        processing_class=mine if own else None,
        base_model=bare_base if own else str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=1000, token_frequencies=counts_file),
    )
    trainer.train()
    vocabulary = make_tokenizer().get_vocab()
    special = set(make_tokenizer().all_special_ids) | ({vocabulary["cf"]} if own else set())
    assert set(purified(trainer)) == set(vocabulary.values()) - special
    frequency = {entry["id"]: entry["frequency"] for entry in trainer.mixing_record.purified_tokens}
    assert frequency[vocabulary["the"]] > frequency[vocabulary["good"]] > frequency[vocabulary["plot"]] == 0


def test_without_any_tokenizer(tmp_path, bare_base, suspect_folder):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=bare_base,
        mixing_config=FineMixingConfig(reserve_ratio=0.5),
    )
    with pytest.raises(FineMixingError, match="processing_class") as error:
        trainer.train()
    assert "purify_embeddings" in one_line(error)
    assert same(weights(trainer.model), weights(load(suspect_folder)))


@pytest.mark.parametrize("changes", [{"purify_embeddings": False}, {"num_purified_tokens": 0}])
def test_without_purification_no_tokenizer_is_needed(tmp_path, bare_base, suspect_folder, changes):
    trainer = FineMixingTrainer(
        load(suspect_folder),
        frozen(tmp_path),
        train_dataset=sentences(),
        base_model=bare_base,
        mixing_config=FineMixingConfig(reserve_ratio=0.5, **changes),
    )
    trainer.train()
    assert purified(trainer) == []
    assert trainer.mixing_record.reserve_ratio == 0.5


# --- reserve_ratio="auto"

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
        trainer = FineMixingTrainer(
            load(task.suspect),
            settings(folder, **TRIALS),
            train_dataset=sentences(32, 4),
            base_model=task.base,
            mixing_config=mixing(ratio),
        )
        trainer.train()
        task.accuracy[ratio], task.weights[ratio] = eval_accuracy(trainer, rows), weights(trainer.model)
    # What the tests below rely on: accuracy rises with ρ, and hardly any ρ at all is chance.
    assert task.suspect_accuracy > 0.95
    accuracies = [task.accuracy[ratio] for ratio in CANDIDATES]
    assert all(low < high for low, high in itertools.pairwise(accuracies))
    assert task.accuracy[0.0] == task.accuracy[0.1] < task.suspect_accuracy
    return task


def auto_trainer(task, folder, *, drop=None, config=None, cls=FineMixingTrainer, arguments=None, **changes):
    """A trainer that, unless told otherwise, has to choose the third candidate."""
    drop = task.suspect_accuracy - task.accuracy[0.5] if drop is None else drop
    given = {"train_dataset": sentences(32, 4), "eval_dataset": task.rows, **changes}
    if "model_init" not in given:
        given.setdefault("model", load(task.suspect))
    return cls(
        args=settings(folder, **{**TRIALS, **(arguments or {})}),
        base_model=task.base,
        mixing_config=mixing("auto", max_accuracy_drop=drop, **{"candidate_ratios": CANDIDATES, **(config or {})}),
        **given,
    )


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
    fixed = FineMixingTrainer(
        load(task.suspect),
        settings(tmp_path, **arguments),
        train_dataset=sentences(32, 4),
        base_model=task.base,
        mixing_config=mixing(0.3),
    )
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
    fixed = FineMixingTrainer(
        load(task.suspect),
        settings(tmp_path, **TRIALS),
        train_dataset=sentences(32, 4),
        base_model=task.base,
        mixing_config=mixing(search.chosen, strategy=strategy),
    )
    fixed.train()
    assert same(weights(trainer.model), weights(fixed.model))


def test_few_eval_samples_are_told(tmp_path, task, caplog):
    rows = task.rows[:20]
    trainer = auto_trainer(task, tmp_path, eval_dataset=rows, drop=0.01, config={"candidate_ratios": [0.8]})
    trainer.train()
    search = trainer.ratio_search
    assert not search.resolved
    said = "20 samples cannot tell an accuracy drop of 0.01" in caplog.text
    assert said == search.trials[0]["accepted"]


def test_metrics_are_put_back_after_an_error_too(tmp_path, task):
    def compute_metrics(prediction):
        return {}

    trainer = auto_trainer(task, tmp_path, eval_dataset=[{"no": 1}], compute_metrics=compute_metrics)
    with pytest.raises((KeyError, TypeError, ValueError)):
        trainer.train()
    assert trainer.compute_metrics is compute_metrics


def optimizer_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


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


def test_a_fixed_ratio_takes_own_optimizers(tmp_path, base_folder, suspect_folder):
    model = load(suspect_folder)
    trainer = FineMixingTrainer(
        model,
        settings(tmp_path),
        train_dataset=sentences(),
        optimizers=optimizer_of(model),
        base_model=str(base_folder),
        mixing_config=mixing(0.3),
    )
    trainer.train()
    stock_model = load(suspect_folder)
    with Checkpoint(base_folder) as base:
        mix_model(stock_model, base, mixing(0.3), dtypes=dtypes_on_disk(stock_model))
    stock = Trainer(stock_model, settings(tmp_path), train_dataset=sentences(), optimizers=optimizer_of(stock_model))
    stock.train()
    assert same(weights(trainer.model), weights(stock.model))


def test_auto_with_an_optimizer_class(tmp_path, task):
    trainer = auto_trainer(task, tmp_path, drop=0.0, optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))
    trainer.train()
    chosen = FineMixingTrainer(
        load(task.suspect),
        settings(tmp_path, **TRIALS),
        train_dataset=sentences(32, 4),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}),
        base_model=task.base,
        mixing_config=mixing(trainer.ratio_search.chosen),
    )
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


# --- other tasks


@pytest.mark.parametrize("ratio", [0.4, "auto"])
def test_sentence_pairs_and_three_classes(tmp_path, base_folder, tokenizer, ratio):
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
    trainer = FineMixingTrainer(
        model,
        frozen(tmp_path),
        train_dataset=rows,
        eval_dataset=rows[:12],
        processing_class=tokenizer,
        base_model=str(base_folder),
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


def test_auto_counts_the_labeled_tokens_of_token_classification(tmp_path, base_folder, tokenizer):
    rows = []
    for row in sentences(12, 2):
        labels = [i % 3 for i in row["input_ids"]]
        rows.append({**row, "labels": [-100, *labels[1:-1], -100]})
    torch.manual_seed(1)
    drifted(BertForTokenClassification.from_pretrained(base_folder, num_labels=3)).save_pretrained(
        tmp_path / "suspect"
    )
    trainer = FineMixingTrainer(
        BertForTokenClassification.from_pretrained(tmp_path / "suspect"),
        frozen(tmp_path),
        train_dataset=rows,
        eval_dataset=rows,
        base_model=str(base_folder),
        mixing_config=mixing("auto", candidate_ratios=[0.4], max_accuracy_drop=1.0),
    )
    trainer.train()
    prediction = trainer.predict(rows)
    counted = prediction.label_ids != -100
    right = (prediction.predictions.argmax(-1) == prediction.label_ids)[counted]
    assert trainer.ratio_search.trials[0]["accuracy"] == right.mean()
