"""What holds of every defense: a new one needs a line in `CHANGES`."""

import re

import pytest
import torch
from helpers.toy import ROOT, drifted, make_config, make_rows
from transformers import BertForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError
from hf_finemix.redteam.defenses.defense import DefenseTrainer
from hf_finemix.redteam.registry import DEFENSES, find_class, find_defense

BODY, EMBEDDINGS = r"bert\.", r"bert\.embeddings\.word_embeddings"
# Which weights its edit may change, as a pattern of their names; `None`: none.
CHANGES = {
    "none": None,
    "fine_tuning": None,
    "matched_floor": BODY,
    "fine_pruning": r".*layer\.\d+\.(intermediate|output)\.dense",
    "soft_mixing": BODY,
    "dare": BODY,
    "fine_purifying": BODY,
    "wag": ".*",
    "fine_mixing": BODY,
}
DRAWS = {"dare", "fine_mixing"}  # whose edit another seed of the mask changes
PURIFIABLE = [name for name in DEFENSES if name not in ("none", "matched_floor")]
every_defense = pytest.mark.parametrize("name", [*DEFENSES, *(f"{name}+epur" for name in PURIFIABLE)])


@pytest.fixture(scope="module")
def second(base_folder, tokenizer, tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("second")
    model = BertForSequenceClassification.from_pretrained(base_folder, config=make_config())
    drifted(model, seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def defend(name, suspect_folder, base_folder, second, tokenizer, tmp_path):
    """The suspect after the defense: its edit alone, unless a learning rate is given."""

    def defended(*, seed=0, lr=0.0, dtype=torch.float32, tied=False):
        defense = find_defense(name)
        if defense.ratio == "auto":
            defense.ratio = 0.4
        model = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=dtype)
        if tied:
            first, last = (model.bert.encoder.layer[i].intermediate.dense for i in (0, 1))
            last.weight = first.weight
        model.config.update({"use_cache": False, "problem_type": "single_label_classification"})  # as any training
        config = model.config.to_dict()
        data = make_rows(24, 4)
        rows = [{**tokenizer(t), "labels": i} for t, i in zip(data["sentence"], data["label"], strict=True)]
        settings = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        trainer = DefenseTrainer(
            model,
            TrainingArguments(str(tmp_path), max_steps=2, learning_rate=lr, **settings),
            train_dataset=rows,
            processing_class=tokenizer,
            defense=defense,
            mixing_config=FineMixingConfig(str(base_folder), num_purified_tokens=5, mixing_seed=seed),
            second_model=str(second),
        )
        if defense.tunes:
            trainer.train()
        assert trainer.model.config.to_dict() == config
        return trainer.model

    return defended


@pytest.mark.parametrize("name", DEFENSES)
def test_it_says_what_it_is_and_the_docs_too(name):
    kind = find_class(DEFENSES[name])
    assert kind.pretty_name
    assert kind.paper is None or kind.paper.startswith("https://arxiv.org/abs/")
    paper = f"[paper]({kind.paper})" if kind.paper else "–"
    assert f"| `{name}` | {kind.pretty_name} | {paper} |" in (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    with pytest.raises(FineMixingError, match=f"the defense '{name}' does not take what it was given"):
        find_defense(name, nosuch=1)
    if name in PURIFIABLE:
        assert find_defense(f"{name}+epur").purify
    else:
        with pytest.raises(FineMixingError, match="nothing to do"):
            find_defense(f"{name}+epur")


@every_defense
def test_only_what_it_says_is_changed(name, defend, suspect_folder):
    before = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32).state_dict()
    after = defend().state_dict()
    plain, _, epur = name.partition("+")
    allowed = "|".join(filter(None, (CHANGES[plain], epur and EMBEDDINGS)))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert all(allowed and re.match(allowed, key) for key in changed)
    assert bool(changed) == bool(allowed)


@every_defense
def test_shapes_dtypes_and_ties_stay_and_all_is_finite(name, defend, suspect_folder):
    before = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.bfloat16).state_dict()
    model = defend(dtype=torch.bfloat16, lr=1e-3, tied=True)
    first, last = (layer.intermediate.dense.weight for layer in model.bert.encoder.layer)
    assert first is last
    after = model.state_dict()
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in after.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in before.items()
    }
    assert all(tensor.isfinite().all() for tensor in after.values())


@every_defense
def test_the_weights_follow_the_seed(name, defend):
    first, again = (defend(lr=1e-3).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if name.partition("+")[0] in DRAWS:
        other = defend(seed=1, lr=1e-3).state_dict()
        assert not all(torch.equal(first[key], other[key]) for key in first)
