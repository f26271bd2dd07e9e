"""The Trainers' signatures, by which launchers choose what they pass, are those of the stock classes and no less."""

import inspect

import pytest
from helpers.toy import make_rows, make_tokenizer
from transformers import BertForSequenceClassification, Seq2SeqTrainer, Trainer, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingSeq2SeqTrainer, FineMixingTrainer
from hf_finemix.trainer import FineMixingMixin

OWN = ["base_model", "mixing_config"]


class Theirs(Trainer):
    """A Trainer of the user's own, with arguments of its own."""

    def __init__(self, model=None, args=None, peft_config=None, processing_class=None, **kwargs):
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        self.peft_config = peft_config

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", *, repeats: int = 1):
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)


class Mixed(FineMixingMixin, Theirs):
    pass


class Further(Mixed):
    """What extends one of ours shows the same."""


class Before:
    """A mixin that comes before ours, with the say over what it overrides."""

    def evaluate(self, *, only: str = "all"):
        return super().evaluate()


class WithBefore(Before, FineMixingMixin, Trainer):
    pass


CLASSES = {
    FineMixingTrainer: Trainer,
    FineMixingSeq2SeqTrainer: Seq2SeqTrainer,
    Mixed: Theirs,
    Further: Theirs,
}
OVERRIDDEN = [
    name for mixin in FineMixingMixin.__bases__ for name in vars(mixin) if callable(getattr(Trainer, name, None))
]
OVERRIDDEN = [name for name in OVERRIDDEN if name == "__init__" or not name.startswith("_")]


@pytest.mark.parametrize("ours", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("method", OVERRIDDEN)
def test_every_parameter_of_the_stock_method_is_in_ours_in_order(ours, method):
    stock = inspect.signature(getattr(CLASSES[ours], method)).parameters
    found = inspect.signature(getattr(ours, method)).parameters
    assert [found[name] for name in stock] == list(stock.values())
    assert [name for name in found if name in stock] == list(stock)
    assert [name for name in found if name not in stock] == (OWN if method == "__init__" else [])


def test_what_is_overridden():
    names = "__init__ call_model_init create_model_card evaluate init_hf_repo push_to_hub save_model train"
    assert set(OVERRIDDEN) == set(names.split())


@pytest.mark.parametrize("ours", CLASSES, ids=lambda cls: cls.__name__)
def test_the_class_itself_shows_what_it_takes(ours):
    found = inspect.signature(ours).parameters
    assert {"model", "args", "processing_class", *OWN} <= found.keys()
    assert all(found[name].kind is inspect.Parameter.KEYWORD_ONLY for name in OWN)
    assert ours.train.__doc__ == FineMixingMixin.train.__doc__


def test_who_comes_before_the_mixin_keeps_the_say(tmp_path):
    assert list(inspect.signature(WithBefore.evaluate).parameters) == ["self", "only"]
    assert "processing_class" in inspect.signature(WithBefore).parameters


def test_a_launcher_that_asks_the_signature_saves_the_tokenizer(base_folder, suspect_folder, tmp_path):
    wanted = "processing_class" if "processing_class" in inspect.signature(FineMixingTrainer).parameters else "nothing"
    rows, tokenizer = make_rows(8), make_tokenizer()
    rows = [{**tokenizer(text), "labels": y} for text, y in zip(rows["sentence"], rows["label"], strict=True)]
    args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
    for cls in (FineMixingTrainer, Mixed):
        trainer = cls(
            BertForSequenceClassification.from_pretrained(suspect_folder, dtype="float32"),
            args,
            train_dataset=rows,
            base_model=str(base_folder),
            mixing_config=FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False),
            **{wanted: tokenizer},
        )
        trainer.train()
        trainer.save_model(str(tmp_path / cls.__name__))
        assert (tmp_path / cls.__name__ / "tokenizer.json").is_file()
    assert trainer.evaluate(eval_dataset=rows, repeats=2)["eval_loss"] > 0


def test_a_user_sees_one_attribute_beside_the_documented_ones(base_folder, suspect_folder, tmp_path):
    model = BertForSequenceClassification.from_pretrained(suspect_folder)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    own = set(dir(FineMixingTrainer(model, args, base_model=str(base_folder)))) - set(dir(Trainer(model, args)))
    documented = {"mixing_config", "mixing_record", "ratio_search", "config_of_mix", "mix_weights"}
    assert {name for name in own if not name.startswith("_")} == documented | {"mixing"}
