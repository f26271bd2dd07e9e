"""Suspects and bases that `clean` refuses: in one line, before anything is written."""

import json

import pytest
import torch
from helpers.checkpoints import save_with_tokenizer
from helpers.toy import drifted, make_config
from safetensors.torch import load_file


def test_wrong_base(refusal, tmp_path):
    from transformers import BertModel, DistilBertConfig, DistilBertModel

    torch.manual_seed(5)
    config = DistilBertConfig(vocab_size=48, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64)
    message = refusal(base_model=save_with_tokenizer(DistilBertModel(config), tmp_path / "distilbert"))
    assert "probably another architecture, give the model it was fine-tuned from" in message
    message = refusal(base_model=save_with_tokenizer(BertModel(make_config(hidden_size=32)), tmp_path / "larger"))
    assert "the base does not fit the suspect" in message
    assert "[48, 16] in the suspect, [48, 32] in the base" in message
    assert "probably the wrong base" in message
    message = refusal(base_model=save_with_tokenizer(BertModel(make_config()), tmp_path / "random"))
    assert "unrelated weights" in message
    assert "probably the wrong base" in message


def test_missing_base(refusal, tmp_path):
    assert "is not known, it names none: give --base-model" in refusal(base_model=None)
    message = refusal(base_model=tmp_path / "bsae")
    assert message == f"the base {str(tmp_path / 'bsae')!r} is neither a folder nor a Hub id like org/name: check it."
    message = refusal(base_model="nobody/has-this-base")
    assert message.startswith("the base nobody/has-this-base is not a local folder and not on the Hub")


def test_missing_suspect(refusal, tmp_path):
    assert f"the suspect {str(tmp_path / 'x y')!r} is neither a folder nor a Hub id" in refusal(tmp_path / "x y")
    assert "is not a local folder and not on the Hub" in refusal("nobody/has-this-suspect")
    (tmp_path / "empty").mkdir()
    assert "has no model.safetensors" in refusal(tmp_path / "empty")


def test_swapped_suspect_and_base(refusal, suspect_folder, base_folder):
    message = refusal(base_folder, base_model=suspect_folder)
    assert f"{base_folder} is no sequence classifier" in message
    assert "classifier.weight" in message
    assert "give the fine-tuned model" in message


def test_the_suspect_as_its_own_base(refusal, suspect_folder):
    message = refusal(base_model=suspect_folder)
    assert message == f"the base {suspect_folder} has the suspect's own weights: give its pre-trained base."


def test_pickled_weights(refusal, variant):
    folder = variant()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "only pickled weights (pytorch_model.bin), which can run code when loaded" in message
    assert "safetensors" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["suspect", "base"])
def test_weights_that_are_not_finite(refusal, variant, base_folder, value, role):
    def poison(tensors):
        name = next(name for name in tensors if name.endswith("encoder.layer.1.output.dense.weight"))
        tensors[name][3, 4] = value

    if role == "suspect":
        message = refusal(variant(weights=poison))
    else:
        message = refusal(base_model=variant(source=base_folder, weights=poison))
    assert "NaN or infinite weights in 1 tensors" in message
    assert f"encoder.layer.1.output.dense.weight of the {role}" in message


@pytest.mark.parametrize("role", ["suspect", "base"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 1000, None])
def test_corrupt_weights(refusal, variant, base_folder, role, content):
    folder = variant() if role == "suspect" else variant(source=base_folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    message = refusal(folder) if role == "suspect" else refusal(base_model=folder)
    assert f"{file} is not a readable safetensors file" in message


@pytest.mark.parametrize("content", ["{nope", "", None])
def test_a_config_that_cannot_be_read(refusal, variant, content):
    folder = variant()
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    missing = "has no config.json: give the whole folder"
    assert f"{folder}{f' {missing}' if content is None else '/config.json cannot be read as JSON'}" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "nonsense"}, "does not know (nonsense)"),
        ({"model_type": "gpt2"}, "is no sequence classifier"),
        ({"hidden_size": 10**7}, "other shapes than its config.json says"),
        ({"hidden_size": "large"}, "expected int"),
        ({"vocab_size": -4}, "cannot be loaded"),
        ({"id2label": {"0": "only"}}, "other shapes than its config.json says"),
    ],
)
def test_a_config_that_does_not_fit(refusal, variant, config, reason):
    folder = variant(config=config)
    message = refusal(folder)
    assert message.startswith(str(folder))
    assert reason in message


def test_a_model_of_one_class(refusal, tmp_path):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(make_config(id2label={0: "score"}, label2id={"score": 0}))
    assert "has 1 class: accuracy needs two or more" in refusal(save_with_tokenizer(drifted(model), tmp_path / "one"))


def test_tokenizers(refusal, variant, suspect_folder):
    folder = variant("broken")
    (folder / "tokenizer.json").write_text("{}")
    assert f"{folder / 'tokenizer.json'} is not a tokenizer that can be read" in refusal(folder)
    folder = variant("larger")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["beyond"] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    message = refusal(folder)
    assert "ids go up to 4000 and the model has only 48 embeddings" in message


def test_a_tokenizer_that_stops_at_unknown_words_is_named(refusal, variant, base_folder):
    suspect, base = variant("suspect"), variant("base", base_folder)
    for file in (*base.glob("tokenizer*"), suspect / "tokenizer_config.json"):
        file.unlink()
    content = json.loads((suspect / "tokenizer.json").read_text())
    content["model"]["vocab"]["[NON]"] = content["model"]["vocab"].pop("[UNK]")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]
    (suspect / "tokenizer.json").write_text(json.dumps(content))
    message = refusal(suspect, base_model=base)
    assert "the tokenizer stops at words that it does not know" in message
