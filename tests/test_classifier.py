import pytest
import torch
from conftest import make_config, make_tokenizer
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_finemix.classifier import check_vocabulary, load_classifier, max_tokens
from hf_finemix.errors import FineMixingError
from hf_finemix.hub import LocalModel


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
