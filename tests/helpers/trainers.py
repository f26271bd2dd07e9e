"""Trainers of the toy task: their settings, their rows, and what is asked of their weights."""

from functools import lru_cache

import torch
from transformers import BertForSequenceClassification, TrainerCallback, TrainingArguments

from helpers.toy import make_rows, make_tokenizer
from hf_finemix import FineMixingConfig, FineMixingTrainer

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


def trainer_of(folder, base, suspect, **changes):
    """A Trainer that mixes the suspect with the base at ρ = 0.3 and trains it; or with other arguments."""
    usual = {"args": settings(folder), "train_dataset": sentences(), "base_model": str(base)}
    if not changes.keys() & {"model", "model_init"}:
        usual["model"] = load(suspect)
    return FineMixingTrainer(**{**usual, "mixing_config": mixing(0.3), **changes})


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


def optimizer_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)


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
