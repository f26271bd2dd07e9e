import pytest
import torch
import transformers
from helpers.families import FAMILIES
from helpers.toy import drifted, make_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForSequenceClassification, BertModel

from hf_finemix import AlignmentError, Checkpoint
from hf_finemix.align.loaded_layout import LoadedLayout
from hf_finemix.align.names import canonical_name
from hf_finemix.io.checkpoint import TensorInfo


def hrm_text():
    """A model whose projections are one tensor on disk and several in memory."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.HrmTextModel(transformers.HrmTextConfig(vocab_size=48, head_dim=8, **settings))


@pytest.mark.parametrize(
    ("make", "fewer_in_memory"),
    [(lambda: FAMILIES["Mixtral"].make("headless"), True), (hrm_text, False)],
    ids=["merged", "split"],
)
def test_what_is_read_is_what_transformers_loads(make, fewer_in_memory, tmp_path):
    model = drifted(make())
    model.half().save_pretrained(tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        layout = LoadedLayout(checkpoint, model)
        state = model.state_dict()
        assert set(layout.tensors) == set(state)
        assert (len(layout.tensors) < len(checkpoint.tensors)) == fewer_in_memory
        assert 0 < len(layout.converted) < len(state)
        assert {source for sources in layout.sources.values() for source in sources} == set(checkpoint.tensors)
        for name, tensor in state.items():
            assert layout.tensors[name] == TensorInfo.of(tensor)
            assert torch.equal(layout.read(name), tensor)
            assert torch.equal(layout.read(name, 1, 3), tensor[1:3])


def test_legacy_names(tmp_path):
    model = BertForSequenceClassification(make_config())
    legacy = {"bert.embeddings.LayerNorm.gamma": 1, "encoder.layer.0.output.LayerNorm.beta": 2}
    save_file(
        {name: torch.full((16,), float(value)) for name, value in legacy.items()}, tmp_path / "model.safetensors"
    )
    layout = LoadedLayout(Checkpoint(tmp_path), model)
    assert layout.sources == {
        "embeddings.LayerNorm.weight": ["bert.embeddings.LayerNorm.gamma"],
        "encoder.layer.0.output.LayerNorm.bias": ["encoder.layer.0.output.LayerNorm.beta"],
    }
    assert (layout.read("encoder.layer.0.output.LayerNorm.bias") == 2).all()


def test_same_tensor_twice_in_the_base(tmp_path):
    save_file({"bert.x": torch.zeros(2), "x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(AlignmentError, match=r"has bert\.x and x, both x"):
        LoadedLayout(Checkpoint(tmp_path), BertModel(make_config()))


def test_a_model_of_no_family_has_no_rules_but_its_prefix(tmp_path):
    class Model(nn.Module):
        base_model_prefix = "body"

    save_file({"body.gamma": torch.ones(2), "head": torch.zeros(3)}, tmp_path / "model.safetensors")
    layout = LoadedLayout(Checkpoint(tmp_path), Model())
    assert layout.sources == {"gamma": ["body.gamma"], "head": ["head"]}
    assert not layout.converted


@pytest.mark.parametrize("change", ["missing", "other shape"])
def test_experts_that_do_not_make_one_tensor(change, tmp_path):
    model = FAMILIES["Mixtral"].make("classifier")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expert = next(name for name in tensors if name.endswith("layers.1.block_sparse_moe.experts.1.w1.weight"))
    if change == "missing":
        del tensors[expert]
    else:
        tensors[expert] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AlignmentError, match=r"cannot be made into .*gate_up_proj .*incomplete copy"):
        LoadedLayout(Checkpoint(tmp_path), model)


def test_names_without_a_place_in_the_model_stay_as_they_are(tmp_path):
    base = FAMILIES["Mixtral"].make("with_head")
    base.save_pretrained(tmp_path)
    # A Llama has no experts: what Mixtral merges is left alone for it.
    layout = LoadedLayout(Checkpoint(tmp_path), FAMILIES["Llama"].make("classifier"))
    assert not layout.converted
    assert canonical_name("model.embed_tokens.weight", "model") in layout.tensors
    assert len(layout.tensors) == len(Checkpoint(tmp_path).tensors)
