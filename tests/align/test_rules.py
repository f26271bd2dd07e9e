import pytest
import torch
from helpers.toy import make_config
from torch import nn
from transformers import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel

from hf_finemix import AlignmentError
from hf_finemix.align.names import canonical_name, named_tensors
from hf_finemix.align.pairing import KEPT_HEAD, TensorMix
from hf_finemix.align.rules import align
from hf_finemix.io.checkpoint import TensorInfo

F32 = "float32"


def infos(model):
    """Tensors by canonical name, those that are tied by each of their names."""
    tensors = model.state_dict().items()
    return {canonical_name(name, "bert"): TensorInfo.of(t) for name, t in tensors}


def names(tensors):
    return [tensor.name for tensor in tensors]


def align_models(suspect, base, head="keep"):
    named = named_tensors(suspect)
    return align(
        {name: TensorInfo.of(t) for name, t in named.tensors.items()},
        infos(base),
        buffers=named.buffers,
        embedding=named.embedding,
        aliases=named.aliases,
        head=head,
    )


def test_prefix_is_taken_off_once():
    assert canonical_name("bert.encoder.x", "bert") == "encoder.x"
    assert canonical_name("bert.bert.x", "bert") == "bert.x"
    assert canonical_name("bertha.x", "bert") == "bertha.x"
    assert canonical_name("x", "") == "x"


@pytest.mark.parametrize("base_class", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_a_classifier_on_any_base(base_class):
    suspect, base = BertForSequenceClassification(make_config()), base_class(make_config())
    pairing = align_models(suspect, base)
    heads = ["classifier.bias", "classifier.weight"]
    if base_class is BertForMaskedLM:  # saved without its pooler
        heads += ["pooler.dense.bias", "pooler.dense.weight"]
    assert sorted(names(pairing.heads())) == heads
    for tensor in pairing.mixed():
        assert tensor.base_name == tensor.name
    assert names(pairing.tensors) == list(named_tensors(suspect).tensors)


def test_every_tensor_has_a_rule():
    suspect, base = BertForSequenceClassification(make_config()), BertForPreTraining(make_config())
    pairing = align_models(suspect, base, head="reinit")
    assert names(pairing.tensors) == list(named_tensors(suspect).tensors)
    assert {tensor.rule.split(":")[0] for tensor in pairing.heads()} == {"reinitialized"}


def test_a_base_that_keeps_the_tied_embedding_under_its_other_name():
    suspect = BertForMaskedLM(make_config())
    base = infos(suspect)
    del base["embeddings.word_embeddings.weight"]
    named = named_tensors(suspect)
    pairing = align(
        {name: TensorInfo.of(t) for name, t in named.tensors.items()},
        base,
        embedding=named.embedding,
        aliases=named.aliases,
    )
    embedding = pairing.mixed_embedding()
    assert embedding.name == "embeddings.word_embeddings.weight"
    assert embedding.base_name == "cls.predictions.decoder.weight"


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "float8_e4m3fn"])
def test_quantized_and_integer_weights_are_refused_by_name(dtype):
    with pytest.raises(AlignmentError, match=r"w: .* cannot be mixed"):
        align({"w": TensorInfo((2,), dtype)}, {"w": TensorInfo((2,), dtype)})


def test_message_names_ten_tensors_and_counts_all():
    suspect = {f"t{i:02}": TensorInfo((2, 2), F32) for i in range(30)}
    base = {name: TensorInfo((2, 3), F32) for name in suspect}
    with pytest.raises(AlignmentError, match="30 of 30 tensors differ") as error:
        align(suspect, base)
    assert "t09" in str(error.value)
    assert "t10" not in str(error.value)
    assert "\n" not in str(error.value)


def test_half_of_the_parameters_must_be_in_the_base():
    suspect = {"a": TensorInfo((10,), F32), "b": TensorInfo((10,), F32)}
    assert align(suspect, {"a": TensorInfo((10,), F32)}).heads() == [
        TensorMix("b", suspect["b"], KEPT_HEAD, source="b")
    ]
    suspect["c"] = TensorInfo((1,), F32)
    with pytest.raises(AlignmentError, match="only 10 of the suspect's 21"):
        align(suspect, {"a": TensorInfo((10,), F32)})


def test_only_the_vocabulary_may_grow_or_be_cut():
    suspect = {"emb": TensorInfo((12, 4), F32), "bias": TensorInfo((12,), F32), "w": TensorInfo((4, 4), F32)}
    base = {"emb": TensorInfo((10, 4), F32), "bias": TensorInfo((10,), F32), "w": TensorInfo((4, 4), F32)}
    pairing = align(suspect, base, embedding="emb")
    assert [tensor.rows for tensor in pairing.tensors] == [10, 10, 4]
    with pytest.raises(AlignmentError, match="emb"):  # nothing says that these rows are tokens
        align(suspect, base)
    taken_away = align(base, suspect, embedding="emb")
    assert [tensor.rows for tensor in taken_away.tensors] == [10, 10, 4]
    with pytest.raises(AlignmentError, match="w: "):
        align({**suspect, "w": TensorInfo((12, 5), F32)}, {**base, "w": TensorInfo((10, 4), F32)}, embedding="emb")


def test_persistent_buffers_are_named_and_others_are_not():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("kept", torch.zeros(1))
            self.register_buffer("made", torch.zeros(1), persistent=False)

    named = named_tensors(Buffered())
    assert set(named.tensors) == {"weight", "kept"}
    assert named.buffers == {"kept"}
    assert named.embedding is None
