"""What is written loads by itself and answers as what was in memory, or nothing of it is kept."""

import json
import os

import pytest
import torch
from helpers.lora import local, make_adapter
from helpers.toy import drifted, make_config, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BartModel,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from hf_finemix import FineMixingConfig, FineMixingError, clean, mix_checkpoints
from hf_finemix.io.adapter_on_base import full_model, load_adapter
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.io.read_back import check_headers, read_back, save_model
from hf_finemix.mix.adapter_output import dtypes_of_adapter, save_adapter

BART = {"vocab_size": 48, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
BART |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}


def gpt2():
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=32))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=60, **sizes))


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes))


def bart():
    return BartForSequenceClassification(BartConfig(**BART, num_labels=2))


@pytest.mark.parametrize("make", [gpt2, t5, vit, bart, lambda: BertForSequenceClassification(make_config())])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_save_pretrained_writes_is_what_is_in_memory(tmp_path, make, dtype):
    torch.manual_seed(0)
    model = make().to(dtype).train()
    model.save_pretrained(tmp_path)
    read_back(tmp_path, model)
    assert model.training


@pytest.mark.parametrize("names", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "no", 1: "yes"}])
def test_two_classes_stay_two_where_the_class_has_three(tmp_path, names):
    model = bart()
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    model.save_pretrained(tmp_path)
    read_back(tmp_path, model)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == names


def test_a_merged_adapter_of_a_bart_of_two_classes_can_be_loaded(tmp_path):
    import peft

    BartModel(BartConfig(**BART)).save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["classification_head"]
    )
    model = BartForSequenceClassification.from_pretrained(tmp_path / "base", config=BartConfig(**BART, num_labels=2))
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    merged = full_model(local(tmp_path / "lora"), local(tmp_path / "base"))
    assert AutoModelForSequenceClassification.from_pretrained(merged.folder).config.num_labels == 2


def test_settings_of_generation_without_an_effect_do_not_stop_a_save(tmp_path):
    model, settings = t5(), {"do_sample": False, "temperature": 0.5, "top_k": 3}
    model.generation_config.update(**settings)
    save_model(model, tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings.items() <= written.items()
    assert model.generation_config.temperature == 0.5
    read_back(tmp_path, model)


def changed_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lost_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edited(name, **changes):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return edit


def swapped_words(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (changed_weights, r"its answers are up to 1 off"),
        (lost_weights, r"missing keys for a BertForSequenceClassification: classifier\.weight"),
        (edited("config.json", hidden_act="relu"), "its answers are up to"),
        (edited("config.json", hidden_size=32), "it cannot be loaded as a BertForSequenceClassification"),
        (swapped_words, "its tokenizer has another vocabulary"),
        (edited("tokenizer_config.json", pad_token="the"), "its tokenizer has other special tokens"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
        (lambda folder: (folder / "chat_template.jinja").write_text("new"), "another chat template"),
    ],
)
def test_what_differs_is_named(tmp_path, edit, told):
    model, tokenizer = drifted(BertForSequenceClassification(make_config(initializer_range=0.5))), make_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    read_back(tmp_path, model, tokenizer)
    edit(tmp_path)
    with pytest.raises(FineMixingError, match=told) as error:
        read_back(tmp_path, model, tokenizer)
    assert "\n" not in str(error.value)


def test_an_adapter_is_read_back_on_its_base(tmp_path, base_folder, tokenizer):
    make_adapter(tmp_path / "lora", base_folder, tokenizer)
    model, _ = load_adapter(local(tmp_path / "lora"), local(base_folder))
    (tmp_path / "out").mkdir()
    save_adapter(model, tmp_path / "out", local(base_folder), dtypes_of_adapter(local(tmp_path / "lora")))
    read_back(tmp_path / "out", model, base=base_folder)
    file = tmp_path / "out" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, file)
    with pytest.raises(FineMixingError, match="its answers are up to"):
        read_back(tmp_path / "out", model, base=base_folder)


@pytest.mark.usefixtures("datasets_cache")
def test_after_a_clean_that_wrote_something_else_nothing_is_left(
    tmp_path, monkeypatch, suspect_folder, base_folder, data_folder
):
    save = BertForSequenceClassification.save_pretrained

    def wrong(self, folder, **options):
        save(self, folder, **options)
        changed_weights(folder)

    monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", wrong)
    settings = {"dataset": str(data_folder), "num_clean_samples": 8}
    with pytest.raises(FineMixingError, match="was read back"):
        clean(
            suspect_folder,
            base_model=base_folder,
            output_dir=tmp_path / "out",
            mixing_config=FineMixingConfig(reserve_ratio=0.5),
            **settings,
        )
    assert os.listdir(tmp_path) == []


def test_headers_alone_tell_what_differs(tmp_path, suspect_folder, base_folder):
    out = tmp_path / "out"
    mix_checkpoints(suspect_folder, base_folder, out, FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False))
    written, embedding = Checkpoint(out).tensors, "bert.embeddings.word_embeddings.weight"
    check_headers(out, written, embedding)
    save_file({"x": torch.ones(1)}, out / "adapter_model.safetensors")
    with pytest.raises(FineMixingError, match=r"adapter_model\.safetensors is none of its weight files"):
        check_headers(out, written, embedding)
    (out / "adapter_model.safetensors").unlink()
    lost_weights(out)
    with pytest.raises(FineMixingError, match=r"1 tensors are others than were mixed \(classifier\.weight\)"):
        check_headers(out, written, embedding)


def test_a_tokenizer_with_more_ids_than_embeddings_is_not_mixed_with(tmp_path, base_folder):
    small = BertForSequenceClassification.from_pretrained(base_folder, config=make_config())
    small.resize_token_embeddings(20)
    drifted(small).save_pretrained(tmp_path / "suspect")
    make_tokenizer().save_pretrained(tmp_path / "suspect")
    small.bert.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    settings = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    with pytest.raises(FineMixingError, match=r"ids go up to \d+ and the model has only 20 embeddings"):
        mix_checkpoints(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
