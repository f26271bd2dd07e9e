"""What people do to train models that are too large: placed, checkpointed, offloaded, quantized."""

import pytest
import torch
from datasets import Dataset
from helpers.toy import make_rows
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer
from hf_finemix.train.peft_arguments import PeftArguments

CONFIG = FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=3)
PLACED = {"device_map": {"bert.embeddings": "cpu", "bert.encoder": "cpu", "bert.pooler": "cpu", "classifier": "cpu"}}


@pytest.fixture
def trained(suspect_folder, base_folder, tokenizer, tmp_path):
    """The record of the mix, and the weights after a little training."""

    def train(load=None, lora=False, **changes):
        rows = Dataset.from_dict(make_rows(16)).map(lambda row: tokenizer(row["sentence"]))
        rows = rows.rename_column("label", "labels")
        model = AutoModelForSequenceClassification.from_pretrained(suspect_folder, dtype="float32", **(load or {}))
        if lora:
            model = PeftArguments(use_peft=True, lora_r=2, lora_dropout=0.0).with_lora(model, "SEQ_CLS")
        settings = {"max_steps": 2, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no"}
        args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **settings, **changes)
        given = {"train_dataset": rows, "processing_class": tokenizer}
        trainer = FineMixingTrainer(model, args, **given, base_model=str(base_folder), mixing_config=CONFIG)
        trainer.train()
        return trainer.mixing_record.tensors, {name: tensor.clone() for name, tensor in model.state_dict().items()}

    return train


@pytest.mark.parametrize(
    ("load", "changes"),
    [
        (PLACED, {}),
        (None, {"gradient_checkpointing": True}),
        (PLACED, {"gradient_checkpointing": True}),
    ],
    ids=["device_map", "gradient_checkpointing", "both"],
)
@pytest.mark.parametrize("lora", [False, True])
def test_placed_and_checkpointed_models_are_mixed_and_trained_as_any(trained, load, changes, lora):
    mix, weights = trained(lora=lora)
    same_mix, same_weights = trained(load, lora=lora, **changes)
    assert same_mix == mix
    assert same_weights.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(same_weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_offloaded_weights_are_refused_with_the_way_out(trained, tmp_path):
    places = {**PLACED["device_map"], "bert.encoder": "disk"}
    with pytest.raises(FineMixingError, match=r"32 of 41 weights are offloaded .*\(hf-finemix mix\)"):
        trained({"device_map": places, "offload_folder": str(tmp_path / "offload")})


def test_quantized_weights_are_refused_with_the_way_out(suspect_folder, base_folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(suspect_folder, dtype="float32")
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none")
    trainer = FineMixingTrainer(
        model, args, train_dataset=[{"input_ids": [1, 2]}], base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False),
    )  # fmt: skip
    with pytest.raises(FineMixingError, match=r"quantized .* give the model in float32, float16 or bfloat16"):
        trainer.train()
