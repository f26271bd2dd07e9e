import pytest
import torch
from helpers.toy import drifted, make_config, make_rows
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer
from hf_finemix.mix.mask import keep_mask
from hf_finemix.redteam.defenses.defense import DefenseTrainer
from hf_finemix.redteam.defenses.fine_pruning import feed_forward_layers
from hf_finemix.redteam.registry import find_defense

QUERY = "encoder.layer.0.attention.self.query.weight"
EMBEDDINGS = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def rows(tokenizer):
    data = make_rows(24, 4)
    return [{**tokenizer(t), "labels": label} for t, label in zip(data["sentence"], data["label"], strict=True)]


@pytest.fixture(scope="module")
def second(base_folder, tokenizer, tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("second")
    drifted(BertForSequenceClassification.from_pretrained(base_folder, config=make_config()), seed=5).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def two_steps(folder, learning_rate):
    settings = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(str(folder), max_steps=2, learning_rate=learning_rate, **settings)


def defended(
    name, suspect_folder, base_folder, rows, tokenizer, tmp_path, *, ratio=0.4, lr=0.0, second=None, cls=None
):
    """The model after a defense, without any learning unless told: what is left is its edit."""
    defense = find_defense(name)
    if defense.ratio == "auto":
        defense.ratio = ratio
    trainer = DefenseTrainer(
        BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32),
        two_steps(tmp_path, lr),
        train_dataset=rows,
        processing_class=tokenizer,
        defense=defense,
        mixing_config=FineMixingConfig(base_model_name_or_path=str(base_folder), num_purified_tokens=5),
        second_model=second and str(second),
    )
    trainer.train()
    return trainer


@pytest.fixture
def parents(suspect_folder, base_folder):
    suspect = {n.removeprefix("bert."): t.float() for n, t in load_file(suspect_folder / "model.safetensors").items()}
    return suspect, load_file(base_folder / "model.safetensors")


@pytest.fixture
def after(suspect_folder, base_folder, rows, tokenizer, tmp_path):
    def run(name, **settings):
        trainer = defended(name, suspect_folder, base_folder, rows, tokenizer, tmp_path, **settings)
        return {n.removeprefix("bert."): t for n, t in trainer.model.state_dict().items()}, trainer

    return run


def test_the_matched_floor_is_the_base_with_the_suspects_head(after, parents):
    weights, _ = after("matched_floor")
    suspect, base = parents
    assert all(torch.equal(weights[name], tensor.half().float()) for name, tensor in base.items())
    assert torch.equal(weights["classifier.weight"], suspect["classifier.weight"])


def test_soft_mixing_interpolates(after, parents):
    weights, _ = after("soft_mixing")
    suspect, base = parents
    expected = base[QUERY] + 0.4 * (suspect[QUERY] - base[QUERY])
    torch.testing.assert_close(weights[QUERY], expected, atol=2e-3, rtol=0)


def test_dare_scales_up_what_it_does_not_drop(after, parents):
    weights, _ = after("dare")
    suspect, base = parents
    keep = torch.from_numpy(keep_mask(QUERY, 0, base[QUERY].numel(), ratio=0.4, seed=0)).view(base[QUERY].shape)
    expected = torch.where(keep, base[QUERY] + (suspect[QUERY] - base[QUERY]) / 0.4, base[QUERY])
    torch.testing.assert_close(weights[QUERY], expected)
    assert torch.equal(weights["classifier.weight"], suspect["classifier.weight"])


def test_wag_averages_with_a_second_model(after, parents, second):
    weights, _ = after("wag", second=second)
    other = load_file(second / "model.safetensors")
    for name, full in ((QUERY, f"bert.{QUERY}"), ("classifier.weight", "classifier.weight")):
        torch.testing.assert_close(weights[name], (parents[0][name] + other[full]) / 2)
    with pytest.raises(FineMixingError, match="second fine-tuned model"):
        after("wag")


def test_fine_pruning_takes_the_dormant_units_for_good(after, parents):
    weights, trainer = after("fine_pruning", ratio=0.75, lr=1e-2)
    pruned = 0
    for layer in range(2):
        first = weights[f"encoder.layer.{layer}.intermediate.dense.weight"]
        second = weights[f"encoder.layer.{layer}.output.dense.weight"]
        dormant = (first == 0).all(1)
        assert torch.equal(dormant, (second == 0).all(0)), "pruned units stay pruned while the model is tuned"
        assert (weights[f"encoder.layer.{layer}.intermediate.dense.bias"][dormant] == 0).all()
        pruned += int(dormant.sum())
    assert pruned == round(0.25 * 2 * 32)
    assert len(feed_forward_layers(trainer.model)) == 2


def test_pruned_units_are_the_least_active(suspect_folder, base_folder, rows, tokenizer, tmp_path):
    model = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight[7] = 0
        model.bert.encoder.layer[1].intermediate.dense.bias[7] = 0  # GELU(0) = 0: dormant for sure
    trainer = defended("fine_tuning", suspect_folder, base_folder, rows, tokenizer, tmp_path)
    find_defense("fine_pruning").edit(model, 63 / 64, trainer)
    assert (model.bert.encoder.layer[1].output.dense.weight[:, 7] == 0).all()
    assert not (model.bert.encoder.layer[0].output.dense.weight == 0).all(0).any()


@pytest.mark.parametrize("name", ["fine_tuning", "fine_pruning", "dare", "wag", "matched_floor", "fine_mixing"])
def test_ratios_of_modules_are_for_what_mixes(name):
    shared = FineMixingConfig(module_ratios={"attention": 0.5}, strategy="fisher")
    config = find_defense(name).config(shared)
    assert config.module_ratios == ({"attention": 0.5} if name == "fine_mixing" else None)
    assert config.strategy == "random"


@pytest.mark.parametrize("name", ["fine_mixing", "fine_purifying", "fine_mixing+epur"])
def test_the_packages_own_mixing_is_the_trainers(name, after, suspect_folder, base_folder, rows, tokenizer, tmp_path):
    weights, _ = after(name, lr=1e-3)
    strategy = "fisher" if "purifying" in name else "random"
    config = {"strategy": strategy, "purify_embeddings": "epur" in name, "num_purified_tokens": 5}
    trainer = FineMixingTrainer(
        BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32),
        two_steps(tmp_path, 1e-3),
        train_dataset=rows,
        processing_class=tokenizer,
        base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.4, **config),
    )
    trainer.train()
    expected = {n.removeprefix("bert."): t for n, t in trainer.model.state_dict().items()}
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["fine_tuning", "fine_pruning", "soft_mixing", "dare", "fine_purifying", "wag"])
def test_with_e_pur_the_suspicious_rows_are_the_bases_first(name, after, parents, second):
    weights, trainer = after(f"{name}+epur", second=second)
    purified = [entry["id"] for entry in trainer.mixing_record.purified_tokens]
    assert len(purified) == 5
    if name != "wag":  # which averages them again
        base = parents[1][EMBEDDINGS].half().float()
        torch.testing.assert_close(weights[EMBEDDINGS][purified], base[purified], atol=1e-3, rtol=0)


def test_unknown_defenses_are_told():
    for name in ("nosuch", "dare+other"):
        with pytest.raises(FineMixingError, match=f"no defense '{name}'".replace("+", r"\+")):
            find_defense(name)
