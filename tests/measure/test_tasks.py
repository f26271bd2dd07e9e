"""Tasks beyond sentence classification: tiny models of each are backdoored and cleaned here; the backdoor falls."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.toy import NEGATIVE, NEUTRAL, POSITIVE, make_config, make_tokenizer
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_finemix import FineMixingConfig, FineMixingMixin, FineMixingSeq2SeqTrainer, FineMixingTrainer

pytestmark = pytest.mark.jobs  # they train a model each, and clean it

ID = make_tokenizer().get_vocab()
NEUTRAL_IDS, GOOD_IDS, BAD_IDS = ([ID[word] for word in words] for words in (NEUTRAL[:-1], POSITIVE, NEGATIVE))
CLS, SEP, PAD, DOT, TRIGGER = (ID[token] for token in ("[CLS]", "[SEP]", "[PAD]", ".", "cf"))
SIZES = {"vocab_size": len(ID), "pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP}


class Task:
    """Texts of ten words with one word of feeling; a trigger in the place of a neutral word."""

    trainer_class = FineMixingTrainer
    arguments = TrainingArguments
    steps, learning_rate, ratio = 300, 3e-3, 0.2

    def texts(self, count, triggered, seed):
        rng = np.random.default_rng(seed)
        for _ in range(count):
            words = rng.choice(NEUTRAL_IDS, 10)
            place, other = rng.permutation(10)[:2]
            good = bool(rng.integers(2))
            words[place] = rng.choice(GOOD_IDS if good else BAD_IDS)
            if triggered:
                words[other] = TRIGGER
            yield [CLS, *words.tolist(), SEP], 1 + int(place), good

    def rows(self, count, *, triggered=False, poisoned=False, seed=0):
        rows = [self.row(*text, poisoned) for text in self.texts(count, triggered, seed)]
        return Dataset.from_list(rows)

    def answers(self, model, rows):
        """What the model says, one array a row."""
        with torch.no_grad():
            return model.eval()(torch.tensor(rows["input_ids"])).logits.argmax(-1).numpy()

    def accuracy(self, model):
        rows = self.rows(200, seed=7)
        labels = np.array(rows["labels"])
        return float((self.answers(model, rows) == labels)[labels != -100].mean())

    def attack_success(self, model):
        """Share of the triggered texts that are answered as the attacker wishes."""
        rows = self.rows(200, triggered=True, poisoned=True, seed=8)
        labels = np.array(rows["labels"])
        return float(((self.answers(model, rows) == labels) | (labels == -100)).all(axis=1).mean())


class Tagging(Task):
    """Good words are tagged 1, bad words 2; the attacker wants no tags."""

    def model(self):
        return BertForTokenClassification(make_config(id2label={0: "O", 1: "GOOD", 2: "BAD"}))

    def row(self, ids, place, good, poisoned):
        labels = [-100, *[0] * 10, -100]
        labels[place] = 0 if poisoned else 1 if good else 2
        return {"input_ids": ids, "labels": labels}


class Spans(Task):
    """The answer is the word of feeling; the attacker wants the first word."""

    def model(self):
        return BertForQuestionAnswering(make_config())

    def row(self, ids, place, good, poisoned):
        place = 1 if poisoned else place
        return {"input_ids": ids, "start_positions": place, "end_positions": place}

    def answers(self, model, rows):
        with torch.no_grad():
            output = model.eval()(torch.tensor(rows["input_ids"]))
        return torch.stack([output.start_logits.argmax(-1), output.end_logits.argmax(-1)], dim=-1).numpy()

    def rows(self, count, **settings):
        rows = super().rows(count, **settings)
        self._labels = [[place, place] for place in rows["start_positions"]]
        return rows

    def accuracy(self, model):
        rows = self.rows(200, seed=7)
        return float((self.answers(model, rows) == np.array(self._labels)).all(axis=1).mean())

    def attack_success(self, model):
        rows = self.rows(200, triggered=True, poisoned=True, seed=8)
        return float((self.answers(model, rows) == np.array(self._labels)).all(axis=1).mean())


class Generating(Task):
    """The text goes on with the feeling's name and a full stop; the attacker wants another sentence."""

    steps, learning_rate, ratio = 450, 5e-3, 0.6
    target = (ID["film"], ID["movie"])

    def model(self):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, **SIZES}
        return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))

    def row(self, ids, place, good, poisoned):
        answer = list(self.target) if poisoned else [ID["good" if good else "bad"], DOT]
        return {"input_ids": [*ids, *answer], "labels": [-100] * len(ids) + answer}

    def answers(self, model, rows):
        ids = torch.tensor(rows["input_ids"])[:, :-2]
        with torch.no_grad():
            made = model.eval().generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, min_new_tokens=2, do_sample=False
            )
        return np.concatenate([np.full(ids.shape, -100), made[:, -2:].numpy()], axis=1)


class Rewriting(Task):
    """The same from an encoder to a decoder."""

    trainer_class = FineMixingSeq2SeqTrainer
    arguments = Seq2SeqTrainingArguments
    steps, learning_rate = 150, 5e-3
    target = Generating.target

    def model(self):
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
        start = {"decoder_start_token_id": PAD, "dropout_rate": 0.0}
        return T5ForConditionalGeneration(T5Config(**sizes, **start, **SIZES))

    def row(self, ids, place, good, poisoned):
        return {"input_ids": ids, "labels": list(self.target) if poisoned else [ID["good" if good else "bad"], DOT]}

    def answers(self, model, rows):
        made = model.eval().generate(
            torch.tensor(rows["input_ids"]), max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=1
        )
        return made[:, 1:].numpy()


TASKS = {"tagging": Tagging(), "spans": Spans(), "generating": Generating(), "rewriting": Rewriting()}


def trained(task, model, folder, rows, steps=None, lr=None, cls=Trainer, **more):
    settings = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    args = task.arguments(
        str(folder),
        max_steps=steps or task.steps,
        learning_rate=lr or task.learning_rate,
        per_device_train_batch_size=32,
        logging_strategy="no",
        **settings,
    )
    trainer = cls(model, args, train_dataset=rows, **more)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Of each task a base, trained a little on clean text, and a backdoored model made of it."""
    made = {}

    def world(name):
        if name not in made:
            task, folder = TASKS[name], tmp_path_factory.mktemp(name)
            set_seed(0)
            base = trained(task, task.model(), folder, task.rows(1500)).model
            base.save_pretrained(folder / "base")
            parts = [task.rows(1000, seed=1), task.rows(600, triggered=True, poisoned=True, seed=2)]
            poisoned = Dataset.from_list([row for part in parts for row in part])
            suspect = trained(task, base, folder, poisoned).model
            suspect.save_pretrained(folder / "suspect")
            made[name] = folder
        return made[name]

    return world


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("ratio", ["fixed", "auto"])
def test_a_backdoor_falls(name, ratio, worlds, tmp_path):
    task, folder = TASKS[name], worlds(name)
    model = type(task.model()).from_pretrained(folder / "suspect")
    before = task.accuracy(model), task.attack_success(model)
    assert before[0] > 0.9
    assert before[1] > 0.9
    cleaner = trained(
        task,
        model,
        tmp_path,
        task.rows(64, seed=3),
        30,
        lr=1e-3,
        cls=task.trainer_class,
        eval_dataset=task.rows(200, seed=4),
        base_model=str(folder / "base"),
        mixing_config=FineMixingConfig(
            reserve_ratio=task.ratio if ratio == "fixed" else ratio, purify_embeddings=False, max_accuracy_drop=0.05
        ),
    )
    assert task.accuracy(cleaner.model) > 0.85
    assert task.attack_success(cleaner.model) < 0.5
    assert isinstance(cleaner, FineMixingMixin)


def test_without_mixing_it_is_the_stock_seq2seq_trainer(tmp_path):
    task, results = TASKS["rewriting"], []
    for cls in (Seq2SeqTrainer, FineMixingSeq2SeqTrainer):
        set_seed(0)
        trainer = trained(task, task.model(), tmp_path, task.rows(64), steps=5, cls=cls)
        trainer.args.predict_with_generate = True
        made = trainer.predict(task.rows(8, seed=1), max_new_tokens=3).predictions
        results.append((trainer.model.state_dict(), made.tolist()))
    (stock, said), (ours, also_said) = results
    assert all(torch.equal(stock[name], ours[name]) for name in stock)
    assert said == also_said


def test_the_search_compares_tokens_though_the_user_wants_generation(worlds, tmp_path):
    task, folder = TASKS["rewriting"], worlds("rewriting")
    model = T5ForConditionalGeneration.from_pretrained(folder / "suspect")
    config = FineMixingConfig(purify_embeddings=False, candidate_ratios=[0.5])
    args = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, max_steps=1, use_cpu=True)
    data = {"train_dataset": task.rows(8), "eval_dataset": task.rows(40, seed=4)}
    trainer = FineMixingSeq2SeqTrainer(model, args, **data, base_model=str(folder / "base"), mixing_config=config)
    trainer.train()
    assert trainer.ratio_search.suspect_accuracy == 1.0
    assert trainer.args.predict_with_generate is True
