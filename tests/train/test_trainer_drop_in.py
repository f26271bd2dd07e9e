"""Without base_model and mixing_config each class is the stock one: whatever is done, both do the same."""

import dataclasses
import inspect
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from helpers.toy import ROOT, make_config, make_tokenizer, sentences, weights
from torch import nn
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_finemix import FineMixingConfig, FineMixingMixin, FineMixingSeq2SeqTrainer, FineMixingTrainer

CLASSES = (Trainer, FineMixingTrainer)


class UsersTrainer(Trainer):
    """A Trainer as users write them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (3 * loss, outputs) if return_outputs else 3 * loss


class UsersFineMixingTrainer(FineMixingMixin, UsersTrainer):
    pass


PAIRS = {
    "Trainer": CLASSES,
    "Seq2SeqTrainer": (Seq2SeqTrainer, FineMixingSeq2SeqTrainer),
    "of a user's own": (UsersTrainer, UsersFineMixingTrainer),
}
SETTINGS = {
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "max_steps": 5,
}


class TwoScalars(nn.Module):
    """y = slope·x + offset, without a config."""

    def __init__(self, slope=0.0, offset=0.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(float(slope)))
        self.offset = nn.Parameter(torch.tensor(float(offset)))

    def forward(self, x, labels=None, **kwargs):
        y = self.slope * x + self.offset
        return (y,) if labels is None else (nn.functional.mse_loss(y, labels), y)


class NoConfig(TwoScalars):
    """The same with a config that is `None`, as some models have it."""

    config = None


class TwoScalarsConfig(PreTrainedConfig):
    model_type = "two_scalars"
    hidden_size = 1


class TwoPreTrainedScalars(PreTrainedModel):
    """The same as a model of transformers, with a random term so that the state of every generator shows."""

    config_class = TwoScalarsConfig
    base_model_prefix = "two_scalars"

    def __init__(self, config):
        super().__init__(config)
        self.slope = nn.Parameter(torch.tensor(0.0))
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.post_init()

    def forward(self, x, labels=None, **kwargs):
        y = self.slope * x + self.offset + 0.05 * torch.randn(1)
        return (y,) if labels is None else (nn.functional.mse_loss(y, labels), y)


@dataclasses.dataclass
class OwnArguments(TrainingArguments):
    """Arguments of a user's own."""

    slope: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"])


@dataclasses.dataclass
class OwnSeq2SeqArguments(Seq2SeqTrainingArguments):
    """The same for Seq2SeqTrainer."""

    slope: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=lambda: ["a"])


def line(count=40, seed=0):
    """Points of y = 2x + 3, with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    y = 2 * x + 3 + 0.1 * torch.randn(count, generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def bert():
    torch.manual_seed(3)
    return BertForSequenceClassification(make_config(hidden_dropout_prob=0.1))


def scalars():
    return TwoPreTrainedScalars(TwoScalarsConfig())


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def distance(prediction):
    return {"distance": float(abs(prediction.predictions - prediction.label_ids).mean())}


def settings(cls=TrainingArguments, folder="out", **changes):
    return cls(str(folder), **{**SETTINGS, **changes})


def settings_for(trainer_class, **changes):
    kind = Seq2SeqTrainingArguments if issubclass(trainer_class, Seq2SeqTrainer) else TrainingArguments
    return settings(kind, **changes)


def untimed(value):
    """Logs, metrics and states without what a clock says."""
    timed = "runtime|per_second|preparation_time"
    if dataclasses.is_dataclass(value) or hasattr(value, "_asdict"):
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value._asdict()
    if isinstance(value, dict):
        return {key: untimed(v) for key, v in value.items() if not re.search(timed, str(key))}
    if isinstance(value, (list, tuple)):
        return [untimed(v) for v in value]
    return value


def alike(left, right):
    """Equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(alike(a, b) for a, b in zip(left, right, strict=True))
    if hasattr(left, "tobytes"):
        return left.tobytes() == right.tobytes()
    return left == right


def contents(folder):
    """Every file below a folder: its bytes where they say the same in every run, else what they mean."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = None
        elif path.name == "training_args.bin":
            args = torch.load(path, weights_only=False)
            found[name] = (type(args), args.to_dict())
        elif path.name == "trainer_state.json":
            found[name] = untimed(json.loads(path.read_text()))
        elif path.suffix in (".pt", ".pth"):
            found[name] = torch.load(path, weights_only=False)
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(params=PAIRS)
def side_by_side(request, tmp_path, monkeypatch):
    """Do the same with both classes, each in a working directory of its own, and assert that all of it is the same."""

    def run(job):
        results = []
        for cls in PAIRS[request.param]:
            folder = tmp_path / cls.__name__
            folder.mkdir()
            monkeypatch.chdir(folder)
            set_seed(11)
            trainer = job(cls)
            results.append(
                {
                    "state": untimed(dataclasses.asdict(trainer.state)),
                    "weights": weights(trainer.model),
                    "files": contents(folder),
                    "random": torch.rand(3),
                    "notes": untimed(getattr(trainer, "notes", None)),
                }
            )
        stock, ours = results
        for key in stock:
            assert alike(stock[key], ours[key]), key
        return stock

    return run


def test_all_arguments_by_position_and_by_name(tmp_path):
    model, args, tokenizer, callback = (
        scalars(),
        settings(folder=tmp_path),
        make_tokenizer(),
        TrainerCallback(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    given = {
        "model": model,
        "args": args,
        "data_collator": lambda rows: rows,
        "train_dataset": line(),
        "eval_dataset": {"a": line(8), "b": line(4)},
        "processing_class": tokenizer,
        "model_init": None,
        "compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs[0],
        "compute_metrics": distance,
        "callbacks": [callback],
        "optimizers": (optimizer, scheduler),
        "optimizer_cls_and_kwargs": None,
        "preprocess_logits_for_metrics": lambda logits, labels: logits,
    }
    # Should transformers add or move an argument, this test has to learn it; the class itself does not.
    assert list(inspect.signature(Trainer.__init__).parameters)[1:] == list(given)
    by_position, by_name = FineMixingTrainer(*given.values()), FineMixingTrainer(**given)
    for trainer in (by_position, by_name):
        for name, value in given.items():
            if name == "callbacks":
                assert callback in trainer.callback_handler.callbacks
            elif name == "optimizers":
                assert (trainer.optimizer, trainer.lr_scheduler) == value
            else:
                assert getattr(trainer, name) is value, name


def test_own_arguments_are_keyword_only(tmp_path):
    count = len(inspect.signature(Trainer.__init__).parameters) - 1
    with pytest.raises(TypeError, match="positional"):
        FineMixingTrainer(scalars(), settings(folder=tmp_path), *[None] * (count - 2), FineMixingConfig())


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {},
        lambda: {"model": scalars(), "model_init": scalars},
        lambda: {"model": scalars(), "tokenizer": None},
        lambda: {"model_init": lambda: None},
        lambda: {"model_init": lambda a, b: scalars()},
    ],
    ids=["nothing", "model and model_init", "unknown", "model_init gives None", "two arguments"],
)
def test_same_errors(tmp_path, arguments):
    errors = []
    for cls in CLASSES:
        with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
            cls(args=settings(folder=tmp_path), **arguments())
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("make", [TwoScalars, NoConfig, scalars])
def test_two_scalar_models(side_by_side, make):
    def job(cls):
        trainer = cls(
            make(), settings_for(cls), train_dataset=line(), eval_dataset=line(16, 1), compute_metrics=distance
        )
        before = trainer.evaluate()
        output = trainer.train()
        again = trainer.train()
        trainer.notes = [before, output, again, trainer.evaluate(), trainer.predict(line(8, 2)).metrics]
        trainer.save_model()
        trainer.save_state()
        return trainer

    stock = side_by_side(job)
    assert stock["weights"]["slope"] > 0.03  # it has learned something
    assert "out/training_args.bin" in stock["files"]


def test_classifier(side_by_side):
    def job(cls):
        trainer = cls(
            model=bert(),
            args=settings_for(
                cls, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, warmup_steps=2
            ),
            train_dataset=sentences(),
            eval_dataset={"one": sentences(16, 1), "two": sentences(8, 2)},
            processing_class=make_tokenizer(),
            compute_metrics=accuracy,
        )
        output = trainer.train()
        predicted = trainer.predict(sentences(8, 3))
        trainer.notes = [output, predicted.predictions, predicted.metrics, trainer.evaluate(sentences(8, 3))]
        trainer.save_model("published")
        return trainer

    files = side_by_side(job)["files"]
    names = {"config.json", "model.safetensors", "training_args.bin", "tokenizer.json", "tokenizer_config.json"}
    assert {Path(name).name for name in files if name.startswith("published/")} >= names
    names |= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    for step in (2, 4, 5):
        assert {Path(name).name for name in files if name.startswith(f"out/checkpoint-{step}/")} >= names
    assert not [name for name in files if "fine_mixing" in name]


def test_load_best_model_at_end(side_by_side):
    def job(cls):
        # So large a learning rate does not end at its best.
        changes = {"learning_rate": 0.9, "lr_scheduler_type": "constant", "max_steps": 12}
        changes |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        trainer = cls(
            TwoScalars(),
            settings_for(cls, load_best_model_at_end=True, **changes),
            train_dataset=line(),
            eval_dataset=line(16, 1),
            compute_metrics=distance,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
        )
        trainer.notes = [trainer.train(), trainer.evaluate()]
        return trainer

    state = side_by_side(job)["state"]
    assert 0 < state["best_global_step"] < state["global_step"]


@pytest.mark.parametrize("how", ["path", "latest"])
def test_resume_from_checkpoint(side_by_side, how):
    def job(cls):
        args = settings_for(cls, save_strategy="steps", save_steps=2, max_steps=6)
        cls(scalars(), args, train_dataset=line()).train()
        trainer = cls(scalars(), args, train_dataset=line())
        checkpoint = "out/checkpoint-2" if how == "path" else True
        trainer.notes = [trainer.train(resume_from_checkpoint=checkpoint), trainer.train(resume_from_checkpoint=False)]
        return trainer

    side_by_side(job)


def test_resume_without_checkpoint(tmp_path):
    errors = []
    for cls in CLASSES:
        trainer = cls(scalars(), settings(folder=tmp_path), train_dataset=line())
        with pytest.raises(ValueError, match="No valid checkpoint") as error:
            trainer.train(resume_from_checkpoint=True)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_model_init(side_by_side):
    def job(cls):
        built = []

        def model_init():
            built.append(TwoScalars(slope=torch.rand(()).item()))
            return built[-1]

        args = settings_for(cls, save_strategy="steps", save_steps=3)
        trainer = cls(args=args, model_init=model_init, train_dataset=line(), eval_dataset=line(8, 1))
        notes = [trainer.evaluate(), trainer.train(), trainer.train(), trainer.train("out/checkpoint-3")]
        trainer.notes = [*notes, len(built), trainer.model is built[-1]]
        return trainer

    assert side_by_side(job)["notes"][-2:] == [4, True]


def test_model_init_with_a_trial(side_by_side):
    def job(cls):
        seen = []

        def model_init(trial):
            seen.append(trial)
            return TwoScalars(offset=trial["offset"] if trial else 0)

        trainer = cls(None, settings_for(cls), model_init=model_init, train_dataset=line())
        trainer.notes = [trainer.train(), weights(trainer.call_model_init({"offset": 2}))]
        # A trial needs a search library, without which the stock Trainer stops after having built the model.
        error = None
        try:
            trainer.train(trial={"offset": 1})
        except RuntimeError as caught:
            error = str(caught)
        trainer.notes += [error, seen, trainer.state.is_hyper_param_search]
        return trainer

    notes = side_by_side(job)["notes"]
    assert notes[1]["offset"] == 2
    assert notes[3:] == [[None, None, {"offset": 2}, {"offset": 1}], True]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # the default arguments expect an accelerator
@pytest.mark.parametrize("side_by_side", ["Trainer", "of a user's own"], indirect=True)  # the other needs arguments
def test_without_arguments(side_by_side):
    def job(cls):
        trainer = cls(TwoScalars(), train_dataset=line())
        trainer.notes = [trainer.train(), trainer.args.output_dir]
        trainer.save_model()
        return trainer

    stock = side_by_side(job)
    assert stock["notes"][1] == "tmp_trainer"
    assert "tmp_trainer/training_args.bin" in stock["files"]


def test_arguments_stay_as_they_are(side_by_side):
    def job(cls):
        own = OwnSeq2SeqArguments if issubclass(cls, Seq2SeqTrainer) else OwnArguments
        args = settings(own, slope=1.5, save_strategy="steps", save_steps=5)
        before = dict(vars(args))
        trainer = cls(TwoScalars(args.slope), args, train_dataset=line())
        constructed = dict(vars(args))
        trainer.train()
        assert trainer.args is args
        assert type(args) is own
        # What the stock Trainer itself fills in (the device, for one) is all that may change.
        trainer.notes = [sorted(vars(args)), args.to_dict(), [k for k in before if before[k] != constructed[k]]]
        return trainer

    files = side_by_side(job)["files"]
    kind, values = files["out/checkpoint-5/training_args.bin"]
    assert issubclass(kind, (OwnArguments, OwnSeq2SeqArguments))
    assert values["slope"] == 1.5


def test_callbacks(side_by_side):
    class Recorder(TrainerCallback):
        def __init__(self):
            self.events = []

    def record(event):
        def handler(self, args, state, control, **kwargs):
            present = sorted(name for name, value in kwargs.items() if value is not None)
            self.events.append([event, state.global_step, state.max_steps, control.should_log, present])
            if "model" in kwargs:
                self.events.append([weights(kwargs["model"]), type(kwargs["model"]).__name__])

        return handler

    events = [name for name in vars(TrainerCallback) if name.startswith("on_")]
    for event in events:
        setattr(Recorder, event, record(event))

    def job(cls):
        recorder = Recorder()
        args = settings_for(cls, max_steps=2, save_strategy="epoch", eval_strategy="epoch")
        trainer = cls(TwoScalars(), args, train_dataset=line(), eval_dataset=line(8, 1), callbacks=[recorder])
        trainer.train()
        trainer.predict(line(8, 1))
        trainer.notes = recorder.events
        return trainer

    seen = {entry[0] for entry in side_by_side(job)["notes"] if isinstance(entry[0], str)}
    assert {"on_init_end", "on_train_begin", "on_step_end", "on_evaluate", "on_save", "on_predict"} <= seen


def test_own_optimizer(side_by_side):
    def job(cls):
        model = TwoScalars()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        trainer = cls(model, settings_for(cls), train_dataset=line(), optimizers=(optimizer, scheduler))
        trainer.notes = [trainer.train(), scheduler.get_last_lr()]
        return trainer

    side_by_side(job)


def test_subclasses(side_by_side):
    def job(cls):
        class Doubled(cls):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
                return (2 * loss, outputs) if return_outputs else 2 * loss

            def call_model_init(self, trial=None):
                self.calls = getattr(self, "calls", 0) + 1
                return super().call_model_init(trial)

            def save_model(self, output_dir=None, _internal_call=False):
                self.saved = [*getattr(self, "saved", []), (output_dir, _internal_call)]
                super().save_model(output_dir, _internal_call)

        args = settings_for(cls, save_strategy="steps", save_steps=3)
        trainer = Doubled(args=args, model_init=lambda: TwoScalars(), train_dataset=line())
        trainer.notes = [trainer.train(), trainer.calls, trainer.saved]
        return trainer

    assert side_by_side(job)["notes"][1] == 2


def test_same_warnings(tmp_path, monkeypatch, caplog):
    """At construction and later: what Python's warnings and the logs of transformers and our own say."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, logger="transformers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    said = []
    for cls in CLASSES:
        folder = tmp_path / cls.__name__
        folder.mkdir()
        monkeypatch.chdir(folder)
        caplog.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # max_steps beside num_train_epochs and a smoothed multi-label loss make the stock Trainer speak.
            model = BertForSequenceClassification(make_config(problem_type="multi_label_classification"))
            rows = [{**row, "labels": [float(row["labels"]), 0.0]} for row in sentences()]
            trainer = cls(model, settings(label_smoothing_factor=0.1, log_level="info"), train_dataset=rows)
            constructed = len(caught), len(caplog.records)
            trainer.train()
            trainer.save_model()
        records = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
        said.append((constructed, [(w.category, str(w.message)) for w in caught], records))
    stock, ours = said
    assert ours == stock
    assert stock[0][0]
    assert any("max_steps is given" in message for _, _, message in stock[2])


# What is put into the upstream tests: `from transformers import Trainer` then gives our class.
PLUGIN = """
import sys
from hf_finemix import FineMixingTrainer

# Loading its parts, transformers puts another module object in its own place: the one that imports will find counts.
sys.modules["transformers"].Trainer = FineMixingTrainer


def pytest_collection_modifyitems(items):
    swapped = [item for item in items if getattr(item.module, "Trainer", None) is FineMixingTrainer]
    assert swapped or not items, "no test module got the swapped class"
"""


def upstream_failures(checkout, tests, folder, swapped):
    """Run upstream tests with the class swapped or not: the ids of those that fail, and the end of the output."""
    (folder / "swapped_trainer.py").write_text(PLUGIN)
    plugin = ["-p", "swapped_trainer"] if swapped else []
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfE",
            "--color=no",
            "--continue-on-collection-errors",
            *plugin,
            *tests,
        ],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode in (0, 1), process.stdout[-3000:] + process.stderr[-3000:]
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", process.stdout, re.MULTILINE), process.stdout[-3000:]


def test_upstream_suite(tmp_path):
    """transformers' own Trainer tests pass with our class wherever they pass with the stock one."""
    checkout = os.environ.get("TRANSFORMERS_CHECKOUT")
    if not checkout or not (Path(checkout) / "tests" / "trainer").is_dir():
        pytest.skip(
            "needs the source of transformers: set TRANSFORMERS_CHECKOUT to a git checkout of "
            f"v{transformers.__version__} that has tests/trainer"
        )
    failed, output = upstream_failures(checkout, ["tests/trainer"], tmp_path, swapped=True)
    if failed:  # what fails with the stock Trainer too (no network, for one) says nothing about ours
        stock, _ = upstream_failures(checkout, failed, tmp_path, swapped=False)
        assert not set(failed) - set(stock), output
