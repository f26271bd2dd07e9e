"""The backdoored MiniLM models of the shared folder, with their real base and data."""

import pytest
import torch
from transformers import AutoTokenizer

from hf_finemix import Checkpoint, FineMixingConfig, clean, mix_model, token_frequencies
from hf_finemix.alignment import named_tensors
from hf_finemix.classifier import load_classifier
from hf_finemix.hub import LocalModel
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
