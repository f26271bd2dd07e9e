"""FineMixingTrainer and LoRA: what is saved, resumed and pushed answers as the cleaned model in memory does."""

import json
import shutil

import peft
import pytest
import torch
from datasets import Dataset
from helpers.generators import KINDS
from helpers.lora import TRIED, make_adapter
from helpers.toy import make_rows, make_tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BartModel,
    BertForSequenceClassification,
    BertModel,
    TrainingArguments,
)

from hf_finemix import Checkpoint, FineMixingConfig, FineMixingError, FineMixingTrainer, mix_model, verify_mix
from hf_finemix.align.pair_in_memory import dtypes_on_disk
from hf_finemix.config import CONFIG_NAME
from hf_finemix.measure.metrics import compute_classification_metrics
from hf_finemix.train.lora_on_mix import MIXED_BASE, check_lora, save_merged

FRESH = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"query": 2}, "alpha_pattern": {"key": 3}},
    "biases": {"bias": "all"},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "all-linear": {"target_modules": "all-linear"},
    "saved whole": {"modules_to_save": ["pooler"]},
}


def rows(count=16, seed=0):
    tokenizer = make_tokenizer()
    data = Dataset.from_dict(make_rows(count, seed))
    data = data.map(lambda row: tokenizer(row["sentence"]), remove_columns="sentence")
    return data.rename_column("label", "labels")


def on_suspect(folder, **changes):
    """A fresh LoRA on a suspect."""
    torch.manual_seed(5)
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "key"], **changes}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def make_trainer(model, base, folder, ratio=0.0, mixing=None, **settings):
    usual = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "max_steps": 4}
    usual |= {"learning_rate": 0.02, "logging_strategy": "no", "hub_strategy": "end"}
    config = FineMixingConfig(reserve_ratio=ratio, purify_embeddings=False, **(mixing or {}))
    return FineMixingTrainer(
        **({"model_init": model} if callable(model) and not isinstance(model, torch.nn.Module) else {"model": model}),
        args=TrainingArguments(str(folder), **{**usual, **settings}),
        train_dataset=rows(),
        eval_dataset=rows(12, seed=1),
        processing_class=make_tokenizer(),
        compute_metrics=compute_classification_metrics,
        base_model=str(base),
        mixing_config=config,
    )


def logits(model):
    with torch.no_grad():
        return model.eval()(TRIED).logits


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --- a LoRA on a suspect: what was mixed is under it


@pytest.mark.parametrize("variant", FRESH)
def test_a_lora_on_a_mix_is_saved_merged(variant, base_folder, suspect_folder, tmp_path):
    trainer = make_trainer(on_suspect(suspect_folder, **FRESH[variant]), base_folder, tmp_path / "run")
    before = logits(trainer.model)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    close(logits(loaded), logits(trainer.model))
    assert not torch.allclose(logits(loaded), before, atol=1e-2)
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    assert (tmp_path / "saved" / CONFIG_NAME).is_file()
    assert hasattr(trainer.model, "peft_config")  # which goes on as it was


def test_a_checkpoint_is_the_lora_on_what_was_mixed(base_folder, suspect_folder, tmp_path):
    trainer = make_trainer(
        on_suspect(suspect_folder), base_folder, tmp_path / "run", save_strategy="steps", save_steps=2
    )
    trainer.train()
    mixed = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    mix_model(mixed, Checkpoint(base_folder), trainer.config_of_mix, dtypes=dtypes_on_disk(mixed))
    first, last = (tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4))
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(last)
    close(logits(loaded), logits(trainer.model))
    under = AutoModelForSequenceClassification.from_pretrained(last / MIXED_BASE)
    assert all(torch.equal(tensor, under.bert.state_dict()[name]) for name, tensor in mixed.bert.state_dict().items())
    weights = [folder / MIXED_BASE / "model.safetensors" for folder in (first, last)]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino  # the room of one
    shutil.rmtree(first)
    assert json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"] == str(last / MIXED_BASE)
    close(logits(peft.AutoPeftModelForSequenceClassification.from_pretrained(last)), logits(trainer.model))


def test_checkpoints_of_several_trainings_keep_their_own_mix(base_folder, suspect_folder, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def mix_in(step):
        return load_file(tmp_path / "run" / f"checkpoint-{step}" / MIXED_BASE / "model.safetensors")

    first = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", **saving)
    first.train()
    before = mix_in(4)
    first.args.max_steps = 2
    for _ in range(2):  # to the same step with the same mix
        first.train()
        assert all(torch.equal(tensor, before[name]) for name, tensor in mix_in(2).items())
    saving["max_steps"] = 2
    second = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", ratio=1.0, **saving)
    second.train()  # another mix, over the checkpoint that the others share their files with
    assert not all(torch.equal(tensor, before[name]) for name, tensor in mix_in(2).items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in mix_in(4).items())


@pytest.mark.parametrize("built", [False, True])
def test_resuming_goes_on_with_the_mix_under_the_lora(built, base_folder, suspect_folder, tmp_path):
    def make(folder, steps, **settings):
        model = (lambda: on_suspect(suspect_folder)) if built else on_suspect(suspect_folder)
        saving = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        return make_trainer(model, base_folder, folder, ratio=0.3, max_steps=steps, **{**saving, **settings})

    through = make(tmp_path / "through", 4)
    through.train()
    make(tmp_path / "run", 2).train()
    second = make(tmp_path / "run", 4)
    second.train(resume_from_checkpoint=True)
    expected, found = through.model.state_dict(), second.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    second.save_model(str(tmp_path / "saved"))
    close(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")), logits(through.model))
    third = make(tmp_path / "run", 6)  # and once more, from a checkpoint that a resumed training wrote
    third.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    under = (trainer.model.get_base_model().bert.encoder.layer[0].output.dense.weight for trainer in (through, third))
    assert torch.equal(*under)


def test_a_checkpoint_without_what_is_under_its_lora_is_not_resumed(base_folder, suspect_folder, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", **settings).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4" / MIXED_BASE)
    trainer = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", **settings)
    with pytest.raises(FineMixingError, match="checkpoint-4 holds a LoRA without the mixed weights under it"):
        trainer.train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_what_is_saved(base_folder, suspect_folder, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1}
    trainer = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", **settings)
    trainer.train()
    best = peft.AutoPeftModelForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    trainer.save_model(str(tmp_path / "saved"))
    close(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")), logits(best))


def test_auto_saves_the_chosen_mix(base_folder, suspect_folder, tmp_path):
    trainer = make_trainer(
        on_suspect(suspect_folder),
        base_folder,
        tmp_path / "run",
        ratio="auto",
        mixing={"candidate_ratios": [0.2, 0.8], "max_accuracy_drop": 1.0},
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    assert trainer.config_of_mix.reserve_ratio == 0.2
    last = tmp_path / "run" / "checkpoint-4"
    close(logits(peft.AutoPeftModelForSequenceClassification.from_pretrained(last)), logits(trainer.model))


def test_peft_itself_never_names_the_suspect_again(base_folder, suspect_folder, tmp_path):
    trainer = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run")
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "by hand")
    named = json.loads((tmp_path / "by hand" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "run" / MIXED_BASE)


def two_adapters(suspect_folder):
    model = on_suspect(suspect_folder)
    model.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    return model


def added_by_transformers(suspect_folder):
    model = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    return model


def another_kind(suspect_folder):
    model = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    return peft.get_peft_model(model, config)


def trained(suspect_folder):
    model = on_suspect(suspect_folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.01 * ("lora_B" in name)
    return model


REFUSED = {
    "two adapters": (two_adapters, "several adapters"),
    "add_adapter": (added_by_transformers, "use peft.get_peft_model"),
    "IA3": (another_kind, "of the kind IA3"),
    "trained": (trained, "adapter_mode='adapter' mixes that LoRA itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_saved_is_refused_before_training(case, base_folder, suspect_folder, tmp_path):
    make, said = REFUSED[case]
    trainer = make_trainer(make(suspect_folder), base_folder, tmp_path / "run")
    before = logits(trainer.model)
    with pytest.raises(FineMixingError, match=said) as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert torch.equal(logits(trainer.model), before)
    assert not trainer.state.global_step


# --- a LoRA that is the suspect


def on_base(base, adapter):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)


def test_the_lora_alone_is_not_mixed_on_a_suspect(base_folder, suspect_folder, tmp_path):
    model = on_suspect(suspect_folder, modules_to_save=["pooler"])
    trainer = make_trainer(model, base_folder, tmp_path / "run", mixing={"adapter_mode": "adapter"})
    with pytest.raises(FineMixingError, match="weights under it are not the base's"):
        trainer.train()


def test_a_lora_suspect_is_pulled_anew_as_it_was_measured(
    account, base_folder, tokenizer, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    account.repos["models", "org/base"] = base_folder
    make_adapter(tmp_path / "adapter", base_folder, tokenizer, labels=("no", "yes"))
    model = on_base("org/base", tmp_path / "adapter")
    adapter = {"adapter_mode": "adapter"}
    settings = {"push_to_hub": True, "hub_model_id": "me/cleaned"}
    trainer = make_trainer(model, "org/base", tmp_path / "cleaned", ratio=0.4, mixing=adapter, **settings)
    trainer.train()
    measured = trainer.evaluate()
    trainer.push_to_hub()
    there = account.head("me/cleaned")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= there.keys()
    named = json.loads(there["adapter_config.json"])
    assert (named["base_model_name_or_path"], named["revision"]) == ("org/base", account.sha("models", "org/base"))
    pulled = peft.AutoPeftModelForSequenceClassification.from_pretrained("me/cleaned", num_labels=2)
    assert torch.equal(logits(pulled), logits(trainer.model))
    report = json.loads(there["cleaning_report.json"])
    assert report["after"]["accuracy"] == measured["eval_accuracy"]
    assert report["suspect"]["id"] == "a LoRA in memory"  # and not the base, which the model is called after
    assert verify_mix("me/cleaned", suspect=tmp_path / "adapter").ok
    with pytest.raises(FineMixingError, match=r"suspect was 'a LoRA in memory' at no .*: give --suspect"):
        verify_mix("me/cleaned")
    assert "A LoRA in memory does not say where it is from: if it is private" in caplog.text


def test_a_lora_on_a_mix_is_pulled_anew_as_a_whole_model(account, base_folder, suspect_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"push_to_hub": True, "hub_model_id": "me/cleaned", "learning_rate": 1e-3}
    trainer = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "out", ratio=0.4, **settings)
    trainer.train()
    trainer.push_to_hub()
    there = account.head("me/cleaned")
    assert "model.safetensors" in there
    assert not [name for name in there if name.startswith(("adapter", MIXED_BASE, "training_args"))]
    close(logits(AutoModelForSequenceClassification.from_pretrained("me/cleaned")), logits(trainer.model))
    assert verify_mix("me/cleaned", suspect=suspect_folder, base_model=base_folder).ok


def test_the_mix_reaches_what_is_saved_at_every_ratio(base_folder, suspect_folder, tmp_path):
    """At ρ = 0, with nothing learned, what is saved is the base's body under the suspect's head."""
    suspect = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    base = BertModel.from_pretrained(base_folder)
    trainer = make_trainer(on_suspect(suspect_folder), base_folder, tmp_path / "run", learning_rate=0.0)
    trainer.train()
    trainer.save_model()
    saved = BertForSequenceClassification.from_pretrained(tmp_path / "run", dtype=torch.float32)
    half = {name: tensor.half().float() for name, tensor in base.state_dict().items()}  # the suspect is in float16
    assert all(torch.equal(tensor, half[name]) for name, tensor in saved.bert.state_dict().items())
    assert torch.equal(saved.classifier.weight, suspect.classifier.weight)


def test_a_model_of_two_classes_is_saved_with_them(base_folder, tmp_path):
    """BART's own default is three, and transformers leaves out two without a name of their own."""
    tokenizer = make_tokenizer()
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": len(tokenizer)}
    sizes |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = BartConfig(**sizes, num_labels=2)
    BartModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def suspect():
        return BartForSequenceClassification.from_pretrained(tmp_path / "base", config=config)

    def with_lora():
        return peft.get_peft_model(suspect(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))

    for make in (suspect, with_lora):
        trainer = make_trainer(make(), tmp_path / "base", tmp_path / "run", save_strategy="steps", save_steps=2)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").config.num_labels == 2
        shutil.rmtree(tmp_path / "saved")
    last = tmp_path / "run" / "checkpoint-4" / MIXED_BASE
    assert AutoModelForSequenceClassification.from_pretrained(last).config.num_labels == 2


def test_tied_weights_are_saved_once(tmp_path):
    model = KINDS["t5"].model()
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q", "v", "wo"]))
    check_lora(lora)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            parameter += 0.1 * ("lora_B" in name)
    save_merged(lora, tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    close(loaded(TRIED, decoder_input_ids=TRIED).logits, lora.eval()(TRIED, decoder_input_ids=TRIED).logits)
    assert "lm_head.weight" not in Checkpoint(tmp_path).tensors


def test_nothing_of_a_training_of_the_other_kind_stays(account, base_folder, suspect_folder, tokenizer, tmp_path):
    make_adapter(tmp_path / "adapter", base_folder, tokenizer, labels=("no", "yes"))
    settings = {"push_to_hub": True, "hub_model_id": "me/cleaned", "learning_rate": 1e-3}
    whole, adapter = "model.safetensors", "adapter_model.safetensors"
    for kind in (whole, adapter, whole):
        model = on_base(base_folder, tmp_path / "adapter") if kind == adapter else on_suspect(suspect_folder)
        mixing = {"adapter_mode": "adapter" if kind == adapter else "merge"}
        trainer = make_trainer(model, base_folder, tmp_path / "out", ratio=0.4, mixing=mixing, **settings)
        trainer.train()
        trainer.push_to_hub()
        weights = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
        assert weights == {kind} == {name for name in account.head("me/cleaned") if name.endswith(".safetensors")}
        assert ("adapter_config.json" in account.head("me/cleaned")) is (kind == adapter)
