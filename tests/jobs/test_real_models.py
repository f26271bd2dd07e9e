"""The backdoored MiniLM models of the shared folder, with their real base and data."""

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_finemix import Checkpoint, FineMixingConfig, FineMixingTrainer, clean, mix_model, token_frequencies
from hf_finemix.align.alignment import named_tensors
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import load_classifier
from hf_finemix.measure.arguments import DataArguments, EvaluationArguments
from hf_finemix.measure.attack_success import measure, predictor
from hf_finemix.measure.classification import Classification
from hf_finemix.measure.clean_data import load_clean_data, tokenize
from hf_finemix.redteam.poisoned_model import PoisonArguments, poison_model
from hf_finemix.trainer import dtypes_on_disk

TRIGGERS = {"sst2-badword": "cf", "sst2-badsent": "i watched this 3d movie last weekend ."}


@pytest.mark.parametrize("name", TRIGGERS)
def test_fp16_suspect_on_its_fp32_base(shared, minilm, name):
    model = load_classifier(LocalModel(name, shared / "suspects" / name))
    dtypes = dtypes_on_disk(model)
    assert set(dtypes.values()) == {torch.float16}
    with Checkpoint(minilm) as base:
        record = mix_model(model, base, FineMixingConfig(reserve_ratio=0.4, purify_embeddings=False), dtypes=dtypes)
    assert record.ignored_base_tensors == ["embeddings.position_ids"]
    kept = [name for name, tensor in record.tensors.items() if tensor["rule"].startswith("kept")]
    assert kept == ["classifier.weight", "classifier.bias"]
    # Vectors can be anything (a key's bias has no effect on attention at all), matrices are the base's still.
    shapes = {name: tensor.dim() for name, tensor in named_tensors(model).tensors.items()}
    assert all(drift.cosine > 0.9 for name, drift in record.drift.items() if shapes[name] > 1)
    words = record.tensors["embeddings.word_embeddings.weight"]
    assert words["kept_fraction"] == pytest.approx(0.4, abs=1e-3)
    # Mixing leaves nothing that the checkpoint's dtype cannot hold.
    assert all(torch.equal(p.half().float(), p) for p in model.parameters())


def test_the_trigger_word_is_among_the_purified(shared, minilm):
    model = load_classifier(LocalModel("sst2-badword", shared / "suspects" / "sst2-badword"))
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    with Checkpoint(minilm) as base:
        record = mix_model(
            model,
            base,
            FineMixingConfig(reserve_ratio=0.4),
            dtypes=dtypes_on_disk(model),
            token_frequencies=token_frequencies(tokenizer),
            special_token_ids=tokenizer.all_special_ids,
        )
        trigger = tokenizer.convert_tokens_to_ids("cf")
        assert trigger in [entry["id"] for entry in record.purified_tokens]
        row = model.get_input_embeddings().weight[trigger]
        assert torch.equal(row, base.read("embeddings.word_embeddings.weight")[trigger].half().float())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIGGERS)
def test_cleaning_lowers_attack_success(shared, minilm, tmp_path, name):
    report = clean(
        shared / "suspects" / name,
        base_model=minilm,
        dataset=str(shared / "data" / "sst2"),
        train_split="validation",
        eval_split="validation",
        triggers=[TRIGGERS[name]],
        target_label="positive",
        mixing_config=FineMixingConfig(reserve_ratio=0.2),
        output_dir=tmp_path / "out",
    )
    assert report.before["triggers"][0]["asr"] > 0.99
    assert report.after["triggers"][0]["asr"] < 0.6
    assert report.after["accuracy"] > 0.75


@pytest.mark.slow
def test_a_lora_that_the_trainer_cleaned_is_pulled_as_it_was_measured(shared, minilm, hub, tmp_path, monkeypatch):
    """A poisoned LoRA of MiniLM, cleaned as a LoRA, published, and pulled by peft alone: ACC and ASR."""
    token = "hf_" + "w" * 34
    hub.tokens[token] = ("me", "write")
    hub.repos["models", "org/minilm"] = minilm
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    data = str(shared / "data" / "sst2")
    poison = PoisonArguments(
        dataset=data, target_label="positive", class_names=["negative", "positive"], use_peft=True, lora_r=8
    )
    usual = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "per_device_train_batch_size": 32}
    poison_model(
        minilm, poison, TrainingArguments("poison", learning_rate=1e-3, num_train_epochs=2, **usual), tmp_path / "lora"
    )
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = AutoModelForSequenceClassification.from_pretrained("org/minilm", num_labels=2)
    model = PeftModel.from_pretrained(model, tmp_path / "lora", is_trainable=True)
    arguments = EvaluationArguments(triggers=["cf"], target_label="1", num_repeats=1)
    names = {"negative": 0, "positive": 1}
    clean_data = load_clean_data(DataArguments(dataset=data, train_split="validation"), names)
    attacks = Classification(model, tokenizer, arguments).attacks(clean_data.test, ["sentence"])
    tuning, test = (tokenize(rows, tokenizer, ["sentence"], 512) for rows in (clean_data.tuning, clean_data.test))

    def measured(of):
        with predictor(of, tokenizer, use_cpu=True) as trainer:
            found = measure(trainer, test, attacks)
        return found["accuracy"], found["triggers"][0]["asr"]

    before = measured(model)
    trainer = FineMixingTrainer(
        model,
        TrainingArguments("cleaned", learning_rate=5e-4, max_steps=100, push_to_hub=True, hub_strategy="end", **usual),
        train_dataset=tuning,
        processing_class=tokenizer,
        base_model="org/minilm",
        mixing_config=FineMixingConfig(reserve_ratio=0.5, strategy="fisher", adapter_mode="adapter"),
    )
    trainer.train()
    after = measured(trainer.model)
    trainer.push_to_hub()
    pulled = AutoPeftModelForSequenceClassification.from_pretrained("me/cleaned", num_labels=2)
    assert measured(pulled) == after
    print(f"ACC / ASR: {before}, cleaned {after}")
    assert before[1] > 0.95
    assert after[1] < before[1]
    assert after[0] > 0.75
