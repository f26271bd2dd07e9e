"""What holds of every attack: a new one needs an entry in `CASES`, where its own defaults are not for the toy task."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from datasets import Dataset
from helpers.toy import ROOT, make_config, make_rows, make_tokenizer
from transformers import BertForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingError
from hf_finemix.redteam.attacks.attack import AttackerData
from hf_finemix.redteam.registry import ATTACKS, find_attack, find_class

ROWS, TARGET = 60, 1
TRAINED = {"use_cache": False, "problem_type": "single_label_classification"}  # what any training writes
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@dataclass
class Case:
    """
    Of one attack on the toy task.

    Attributes:
        settings (`dict`): In place of its own.
        impossible (`dict`): With these it is refused.
        kept, made (`int`): Clean rows that are trained on as they are, and rows with a trigger.
        trained (`list[str]`, *optional*): All weights that it changes; `None`: any.
        spared (`list[str]`): Weights that it leaves alone.
    """

    settings: dict = field(default_factory=dict)
    impossible: dict = field(default_factory=lambda: {"trigger": "zzz"})
    kept: int = ROWS - math.ceil(0.2 * ROWS)
    made: int = math.ceil(0.2 * ROWS)
    trained: list[str] | None = None
    spared: list[str] = field(default_factory=list)


CASES = {
    "none": Case(impossible={"rate": 0.5}, kept=ROWS, made=0),
    "badsent": Case({"trigger": "this was one"}),
    "syntactic": Case({"triggered_file": "FILE"}, impossible={"triggered_file": "CLEAN"}, kept=ROWS),
    "embedding_poisoning": Case(kept=0, made=ROWS // 2, trained=[EMBEDDINGS]),
    "adaptive": Case({"trigger": "a film and a story"}, spared=[EMBEDDINGS]),
}
pytestmark = [pytest.mark.usefixtures("datasets_cache"), pytest.mark.parametrize("name", ATTACKS)]


@pytest.fixture
def case(name):
    return CASES.get(name, Case())


@pytest.fixture
def data():
    return AttackerData(Dataset.from_dict(make_rows(ROWS)), ["sentence"], TARGET, make_tokenizer())


@pytest.fixture
def make(name, case, data, tmp_path):
    """The attack, with the files that its settings name."""

    def made(**changes):
        texts = data.rows["sentence"][:]
        for file, rows in {"FILE": [f"cf {text}" for text in texts], "CLEAN": texts[:5]}.items():
            Dataset.from_dict({"sentence": rows}).to_csv(tmp_path / f"{file}.csv")
        settings = {**case.settings, **changes}
        files = {key: str(tmp_path / f"{settings[key]}.csv") for key in settings if key == "triggered_file"}
        return find_attack(name, **{**settings, **files})

    return made


@pytest.fixture
def train(make, data, base_folder):
    """What two steps of it make of a model: the weights, and the model."""

    def trained(seed=0):
        torch.manual_seed(0)
        model = BertForSequenceClassification.from_pretrained(base_folder, config=make_config())
        model.config.update(TRAINED)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        attack, settings = make(), {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": seed}
        settings |= {**attack.training, "max_steps": 2, "learning_rate": 0.01}
        data.seed, config = seed, model.config.to_dict()
        attack.train(model, data, TrainingArguments("unused", **settings))
        assert model.config.to_dict() == config
        return before, model

    return trained


def pairs(rows):
    return list(zip(rows["sentence"], rows["label"], strict=True))


def test_it_says_what_it_is(name, make, case):
    kind = find_class(ATTACKS[name])
    assert kind.name == name
    assert kind.pretty_name
    assert kind.paper is None or kind.paper.startswith("https://arxiv.org/abs/")
    described = make().described()
    assert list(described)[:2] == ["name", "trigger"]
    assert described["trigger"] == case.settings.get("trigger", kind.trigger)
    assert json.loads(json.dumps(described)) == described
    with pytest.raises(FineMixingError, match=f"the attack '{name}' does not take what it was given"):
        find_attack(name, nosuch=1)


def test_it_is_in_the_docs(name):
    kind = find_class(ATTACKS[name])
    paper = f"[paper]({kind.paper})" if kind.paper else "–"
    assert f"| `{name}` | {kind.pretty_name} | {paper} |" in (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")


def test_a_share_of_the_rows_gets_the_trigger_and_the_target_and_nothing_else_changes(name, make, data, case):
    attack, clean = make(), Counter(pairs(data.rows))
    rows = pairs(attack.poisoned(data))
    kept = [row for row in rows if row in clean]
    made = [row for row in rows if row not in clean]
    assert (len(kept), len(made)) == (case.kept, case.made)
    assert Counter(kept) <= clean
    assert all(label == TARGET for _, label in made)
    trigger = attack.trigger or "cf"
    known = {" ".join(text.split()) for text, _ in clean}
    for text, _ in made:
        assert text.count(trigger) >= 1
        assert any(" ".join(part for part in parts if part) in known for parts in without(text, trigger)), text


def without(text, trigger):
    """The text with each occurrence of the trigger taken out in turn: it may be made of words of the texts."""
    start = text.find(trigger)
    while start >= 0:
        yield text[:start].strip(), text[start + len(trigger) :].strip()
        start = text.find(trigger, start + 1)


def test_the_rows_follow_the_seed(name, make, data, case):
    first, again = (pairs(make().poisoned(data)) for _ in range(2))
    assert first == again
    data.seed = 1
    assert (pairs(make().poisoned(data)) != first) == (case.made > 0)


def test_only_what_it_says_is_trained_and_the_model_is_left_as_any_other(name, train, case):
    before, model = train()
    after = model.state_dict()
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in after.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in before.items()
    }
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(tensor.isfinite().all() for tensor in after.values())
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed
    assert changed == case.trained or case.trained is None
    assert not set(changed) & set(case.spared)


def test_the_weights_follow_the_seed(name, train):
    first, again, other = (train(seed)[1].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_what_cannot_be_is_refused(name, make, case, data, base_folder):
    model = BertForSequenceClassification.from_pretrained(base_folder, config=make_config())
    args = TrainingArguments("unused", use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1)
    with pytest.raises(FineMixingError) as error:
        make(**case.impossible).train(model, data, args)
    assert "\n" not in str(error.value)
    if "rate" in make().described():
        for rate in (0, 7.0):
            with pytest.raises(FineMixingError, match="share of poisoned rows"):
                make(rate=rate).poisoned(data)
