import json
import shutil

import pytest
import torch
from helpers.toy import make_config, make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_finemix.errors import FineMixingError
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import agree_on_padding, check_vocabulary, load_classifier, max_tokens


def roberta(**changes):
    settings = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings |= {"intermediate_size": 32, "max_position_embeddings": 22, "pad_token_id": 1, **changes}
    return RobertaForSequenceClassification(RobertaConfig(**settings))


def distilbert():
    settings = {"vocab_size": 48, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    return DistilBertForSequenceClassification(DistilBertConfig(max_position_embeddings=20, **settings))


def test_a_classifier_is_loaded_in_single_precision_and_as_it_is(suspect_folder):
    model = load_classifier(LocalModel("suspect", suspect_folder))
    expected = BertForSequenceClassification.from_pretrained(suspect_folder).float().state_dict()
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dict.fromkeys(
        expected, torch.float32
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (lambda: BertForSequenceClassification(make_config(max_position_embeddings=20)), 20),
        (distilbert, 20),
        (roberta, 20),  # counts its positions from the padding token's id on
        (lambda: roberta(pad_token_id=4), 17),
    ],
)
def test_the_longest_text_that_a_model_takes(model, limit):
    model, tokenizer = model(), make_tokenizer()
    tokenizer.model_max_length = int(1e30)  # "no limit"
    assert max_tokens(None, tokenizer, model) == limit
    longest = torch.full((1, limit), 7)
    model(input_ids=longest)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 7))


def test_the_smallest_limit_counts():
    tokenizer, model = make_tokenizer(), distilbert()
    assert max_tokens(10, tokenizer, model) == 10
    assert max_tokens(100, tokenizer, model) == 20
    tokenizer.model_max_length = 12
    assert max_tokens(None, tokenizer, model) == 12
    tokenizer.model_max_length = int(1e30)
    model.config = PreTrainedConfig()  # of a model that takes texts of any length
    assert max_tokens(None, tokenizer, model) is None


def test_each_token_needs_an_embedding():
    model, tokenizer = BertForSequenceClassification(make_config()), make_tokenizer()
    check_vocabulary(tokenizer, model)
    tokenizer.add_tokens(["one more"])
    with pytest.raises(FineMixingError, match="ids go up to 48 and the model has only 48 embeddings"):
        check_vocabulary(tokenizer, model)


def copied(folder, target, **changes):
    """A copy of a model folder with keys of its config changed."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_the_config_does_not_choose_another_weight_file(suspect_folder, tmp_path):
    folder = copied(suspect_folder, tmp_path / "suspect", transformers_weights="evil.safetensors")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "evil.safetensors")
    model = load_classifier(LocalModel("suspect", folder))
    assert torch.equal(model.classifier.bias, tensors["classifier.bias"].float())


@pytest.mark.parametrize(
    ("changes", "file", "said"),
    [
        ({"problem_type": "multi_label_classification"}, None, "only one label a text"),
        ({}, "adapter_config.json", "is an adapter"),
    ],
)
def test_what_cannot_be_cleaned_yet(suspect_folder, tmp_path, changes, file, said):
    folder = copied(suspect_folder, tmp_path / "suspect", **changes)
    if file:
        (folder / file).write_text("{}")
    with pytest.raises(FineMixingError, match=said):
        load_classifier(LocalModel("suspect", folder))


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn"])
def test_dtypes_that_float32_cannot_train_without_loss(suspect_folder, tmp_path, dtype):
    folder = copied(suspect_folder, tmp_path / "suspect")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = tensors["bert.pooler.dense.weight"].to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FineMixingError, match=f"pooler.dense.weight is in {dtype}"):
        load_classifier(LocalModel("suspect", folder))


def test_padding_is_what_the_model_takes_for_it():
    model = BertForSequenceClassification(make_config())
    for of_model, of_tokenizer, end, expected in [
        (0, "[PAD]", None, 0),
        (3, "[PAD]", None, 3),  # the model was trained so, and finds the end of a text by it
        (3, None, None, 3),
        (None, "[MASK]", None, 4),
        (None, None, "[SEP]", 3),  # as for GPT-2
        (-1, None, "[SEP]", 3),  # Llama's way of saying none
        (10**6, "[PAD]", None, 0),
    ]:
        tokenizer = make_tokenizer()
        model.config.pad_token_id, tokenizer.pad_token, tokenizer.eos_token = of_model, of_tokenizer, end
        agree_on_padding(tokenizer, model)
        assert (model.config.pad_token_id, tokenizer.pad_token_id) == (expected, expected)


def test_a_model_without_any_padding():
    model, tokenizer = BertForSequenceClassification(make_config()), make_tokenizer()
    model.config.pad_token_id = tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(FineMixingError, match="neither model nor tokenizer has a padding token"):
        agree_on_padding(tokenizer, model)


@pytest.mark.parametrize("limit", [-5, 0, 3])
def test_a_limit_that_leaves_no_text(limit):
    with pytest.raises(FineMixingError, match=f"max_length is {limit}, and 3 of it are special tokens"):
        max_tokens(limit, make_tokenizer(), distilbert())
