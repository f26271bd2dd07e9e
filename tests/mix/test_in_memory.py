import hashlib
import math

import numpy as np
import pytest
import torch
from helpers.toy import drifted, make_config
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_finemix import AlignmentError, Checkpoint, FineMixingConfig, FineMixingError
from hf_finemix.align.drift import drift_by_layer
from hf_finemix.align.names import named_tensors
from hf_finemix.align.pairing import MIXED, TensorMix
from hf_finemix.io.checkpoint import TensorInfo
from hf_finemix.mix.in_memory import mix_model, mix_rows
from hf_finemix.mix.mask import keep_mask


def test_auto_is_for_the_trainer(suspect, base_folder):
    with pytest.raises(FineMixingError, match="auto"):
        mix(suspect, base_folder, "auto")


def test_large_finite_weights_give_finite_numbers(suspect, base_folder):
    with torch.no_grad():
        suspect.bert.pooler.dense.bias[0] = 1e30
    record = mix(suspect, base_folder, 0.5)
    assert all(math.isfinite(value) for value in drift_by_layer(record.drift).values())


def plan(ratio):
    """Of a tensor "t"."""
    return TensorMix("t", TensorInfo((1200,), "float32"), MIXED, "t", 1200, ratio=ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_element_is_one_parents_bit_for_bit(dtype):
    suspect, base = (torch.randn(40, 30, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    suspect[0, :3], base[0, :3] = torch.tensor([0.0, -0.0, 1.0]), torch.tensor([-0.0, 0.0, -1.0])
    mixed, kept = mix_rows(plan(0.4), suspect, base, 0, FineMixingConfig())
    keep = torch.from_numpy(keep_mask("t", 0, 1200, ratio=0.4, seed=0)).view(40, 30)
    assert kept == keep.sum()
    as_bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    expected = torch.where(keep, suspect.view(as_bits), base.view(as_bits))
    assert torch.equal(mixed.view(as_bits), expected)


def test_average_is_interpolation_and_ends_in_the_parents():
    suspect, base = torch.tensor([1.0, -0.0, 3.0]).half(), torch.tensor([0.0, 0.0, 1.0]).half()
    config = FineMixingConfig(strategy="average")
    for ratio, expected in ((0, base), (1, suspect), (0.25, torch.tensor([0.25, 0.0, 1.5]).half())):
        mixed, _ = mix_rows(plan(ratio), suspect, base, 0, config)
        assert torch.equal(
            mixed.view(torch.int16) if ratio in (0, 1) else mixed,
            expected.view(torch.int16) if ratio in (0, 1) else expected,
        )


@pytest.fixture
def suspect(suspect_folder):
    """The fp16 suspect, in the fp32 it trains in."""
    return BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)


def half(model):
    return dict.fromkeys(named_tensors(model).tensors, torch.float16)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in named_tensors(model).tensors.items()}


def mix(model, folder, ratio, purify=False, **options):
    config = FineMixingConfig(reserve_ratio=ratio, purify_embeddings=purify, **options.pop("config", {}))
    with Checkpoint(folder) as base:
        return mix_model(model, base, config, **options)


def test_ratio_one_is_the_suspect_and_ratio_zero_the_base(suspect, base_folder):
    before = snapshot(suspect)
    mix(suspect, base_folder, 1.0, dtypes=half(suspect))
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(suspect).items())
    record = mix(suspect, base_folder, 0.0, dtypes=half(suspect))
    base = load_file(base_folder / "model.safetensors")
    for name, tensor in snapshot(suspect).items():
        if name.startswith("classifier"):
            assert torch.equal(tensor, before[name])
            assert record.tensors[name]["kept_fraction"] == 1
        else:
            assert torch.equal(tensor, base[name].half().float())
            assert record.tensors[name]["kept_fraction"] == 0


def test_mixing_wide_and_cast_back_is_mixing_narrow(suspect, suspect_folder, base_folder):
    narrow = BertForSequenceClassification.from_pretrained(suspect_folder)
    assert narrow.dtype == torch.float16
    wide_record = mix(suspect, base_folder, 0.4, dtypes=half(suspect))
    narrow_record = mix(narrow, base_folder, 0.4)
    narrow_tensors = snapshot(narrow)
    for name, tensor in snapshot(suspect).items():
        assert torch.equal(tensor.half(), narrow_tensors[name])
        assert torch.equal(tensor, narrow_tensors[name].float())
    assert wide_record.tensors == narrow_record.tensors


def test_a_model_trained_since_it_was_loaded_keeps_its_own_values(suspect, base_folder):
    with torch.no_grad():
        suspect.classifier.weight += 1e-5
        suspect.bert.pooler.dense.weight += 1e-5
    before = snapshot(suspect)
    mix(suspect, base_folder, 0.4, dtypes=half(suspect))
    base = load_file(base_folder / "model.safetensors")
    for name, tensor in snapshot(suspect).items():
        if name == "pooler.dense.weight":
            assert ((tensor == before[name]) | (tensor == base[name])).all()
        elif not name.startswith("classifier"):
            assert ((tensor == before[name]) | (tensor == base[name].half().float())).all()
        else:
            assert torch.equal(tensor, before[name])


def test_record_digests_and_fractions(suspect, base_folder):
    record = mix(suspect, base_folder, 0.4, dtypes=half(suspect))
    for name, tensor in snapshot(suspect).items():
        entry = record.tensors[name]
        assert entry["sha256"] == hashlib.sha256(tensor.detach().half().numpy().tobytes()).hexdigest()
        if entry["rule"] == "mixed":
            mask = keep_mask(name, 0, tensor.numel(), ratio=0.4, seed=0)
            assert entry["kept_fraction"] == pytest.approx(mask.mean())


def test_same_mix_whatever_the_chunks_and_layouts(suspect, base_folder, tmp_path, monkeypatch):
    before = snapshot(suspect)
    whole = mix(suspect, base_folder, 0.4, dtypes=half(suspect)).tensors
    # The base in two shards, in another order, with legacy names, a prefix and another head.
    legacy = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in reversed(load_file(base_folder / "model.safetensors").items())
    }
    legacy["cls.predictions.bias"] = torch.zeros(48)
    from helpers.checkpoints import write_shards

    names = list(legacy)
    write_shards(tmp_path, {f"{i}.safetensors": {n: legacy[n] for n in names[i::2]} for i in (0, 1)})
    suspect.load_state_dict({"bert." + n if not n.startswith("classifier") else n: t for n, t in before.items()})
    monkeypatch.setattr("hf_finemix.mix.in_memory.CHUNK_ELEMENTS", 37)
    record = mix(suspect, tmp_path, 0.4, dtypes=half(suspect))
    assert record.tensors == whole
    assert record.ignored_base_tensors == ["cls.predictions.bias"]


def test_exempting_a_tensor_changes_no_other(suspect, base_folder):
    before = snapshot(suspect)
    plain = mix(suspect, base_folder, 0.4, dtypes=half(suspect)).tensors
    with torch.no_grad():
        for name, tensor in named_tensors(suspect).tensors.items():
            tensor.copy_(before[name])
    exempt = mix(
        suspect, base_folder, 0.4, dtypes=half(suspect), config={"module_ratios": {r"attention": 1.0}}
    ).tensors
    changed = {name for name in plain if plain[name]["sha256"] != exempt[name]["sha256"]}
    assert changed == {name for name in plain if "attention" in name}
    assert all(exempt[name]["kept_fraction"] == 1 for name in changed)


def test_seed_changes_the_mix(suspect_folder, base_folder):
    def digests(seed):
        model = BertForSequenceClassification.from_pretrained(suspect_folder)
        return mix(model, base_folder, 0.4, config={"mixing_seed": seed}).tensors

    assert digests(0) == digests(0)
    assert digests(0) != digests(1)


def test_purified_rows_are_the_bases_and_the_rest_is_mixed_as_ever(suspect, suspect_folder, base_folder):
    with torch.no_grad():
        suspect.bert.embeddings.word_embeddings.weight[22] += 1.0  # the row of a trigger
        suspect.bert.embeddings.word_embeddings.weight[2] += 5.0  # a special token
        suspect.half().float()
    plain = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    plain.load_state_dict(suspect.state_dict())
    frequencies = np.full(48, 1e5)
    frequencies[30:] = 0
    record = mix(
        suspect,
        base_folder,
        0.4,
        purify=True,
        dtypes=half(suspect),
        token_frequencies=frequencies,
        special_token_ids=[0, 1, 2, 3, 4],
        config={"num_purified_tokens": 3},
    )
    mix(plain, base_folder, 0.4, dtypes=half(suspect))
    assert record.purified_tokens[0]["id"] == 22
    assert record.purified_tokens[0]["delta"] == pytest.approx(4, abs=0.5)
    assert record.purified_tokens[0]["frequency"] == 1e5
    ids = [entry["id"] for entry in record.purified_tokens]
    assert len(ids) == 3
    assert not {0, 1, 2, 3, 4} & set(ids)
    scores = [entry["score"] for entry in record.purified_tokens]
    assert scores == sorted(scores, reverse=True)
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"].half().float()
    rows, other = (model.bert.embeddings.word_embeddings.weight.detach() for model in (suspect, plain))
    assert torch.equal(rows[ids], base[ids])
    rest = [i for i in range(48) if i not in ids]
    assert torch.equal(rows[rest], other[rest])
    mask = keep_mask("embeddings.word_embeddings.weight", 0, 48 * 16, ratio=0.4, seed=0).reshape(48, 16)
    expected = mask[rest].sum() / mask.size
    assert record.tensors["embeddings.word_embeddings.weight"]["kept_fraction"] == pytest.approx(expected)


def test_purification_goes_before_averaging_too(suspect, base_folder):
    record = mix(
        suspect,
        base_folder,
        0.5,
        purify=True,
        dtypes=half(suspect),
        token_frequencies=np.ones(48),
        config={"strategy": "average", "num_purified_tokens": 5},
    )
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"].half().float()
    ids = [entry["id"] for entry in record.purified_tokens]
    assert torch.equal(suspect.bert.embeddings.word_embeddings.weight[ids], base[ids])
    assert record.tensors["pooler.dense.weight"]["kept_fraction"] is None


def test_grown_vocabulary_mixes_common_rows_and_keeps_the_new(suspect, base_folder):
    suspect.resize_token_embeddings(51, mean_resizing=False)
    with torch.no_grad():
        suspect.bert.embeddings.word_embeddings.weight.copy_(suspect.bert.embeddings.word_embeddings.weight.half())
    new = suspect.bert.embeddings.word_embeddings.weight[48:].clone()
    record = mix(suspect, base_folder, 0.0, dtypes=half(suspect), purify=True, token_frequencies=np.ones(51))
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"].half().float()
    assert torch.equal(suspect.bert.embeddings.word_embeddings.weight, torch.cat([base, new]))
    assert record.added_token_ids == [48, 49, 50]
    assert record.tensors["embeddings.word_embeddings.weight"]["kept_fraction"] == pytest.approx(3 / 51)


def test_tied_weights_stay_tied_and_go_by_the_input_embedding(base_folder):
    torch.manual_seed(0)
    model = drifted(BertForMaskedLM.from_pretrained(base_folder))
    assert "embeddings.word_embeddings.weight" in named_tensors(model).tensors
    assert "cls.predictions.decoder.weight" not in named_tensors(model).tensors
    mix(model, base_folder, 0.0)
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(model.cls.predictions.decoder.weight, base)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_reinitialized_head(suspect, base_folder):
    before = snapshot(suspect)
    record = mix(suspect, base_folder, 0.5, dtypes=half(suspect), config={"head": "reinit"})
    assert not torch.equal(suspect.classifier.weight, before["classifier.weight"])
    assert suspect.classifier.weight.std() < 0.1
    assert record.tensors["classifier.weight"]["kept_fraction"] == 0
    first = suspect.classifier.weight.clone()
    mix(suspect, base_folder, 0.5, dtypes=half(suspect), config={"head": "reinit"})
    assert torch.equal(suspect.classifier.weight, first)


def test_base_without_pooler_keeps_the_suspects(suspect, tmp_path):
    drift = {
        name: tensor for name, tensor in snapshot(suspect).items() if "pooler" not in name and "class" not in name
    }
    save_file({name: tensor * 1.01 for name, tensor in drift.items()}, tmp_path / "model.safetensors")
    before = suspect.bert.pooler.dense.weight.clone()
    record = mix(suspect, tmp_path, 0.0)
    assert torch.equal(suspect.bert.pooler.dense.weight, before)
    assert record.tensors["pooler.dense.weight"]["rule"].startswith("kept")


class WithBuffer(nn.Module):
    """A model of no family at all, with a scalar parameter and a buffer that is not finite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("limits", torch.tensor([float("-inf"), float("inf")]))


def test_buffers_and_scalars(tmp_path):
    save_file(
        {"weight": torch.eye(4) * 1.1, "scale": torch.tensor(2.0), "limits": torch.zeros(2)},
        tmp_path / "model.safetensors",
    )
    model = WithBuffer()
    record = mix(model, tmp_path, 0.0)
    assert model.scale == 2
    assert model.limits.isinf().all()
    assert record.tensors["limits"]["rule"] == "kept: buffer"


@pytest.mark.parametrize(
    ("side", "value", "said"),
    [
        ("suspect", float("nan"), "query.weight of the suspect"),
        ("base", float("inf"), "query.weight of the base"),
        ("base", 1e6, "overflows in torch.float16"),
        ("head", float("nan"), "classifier.weight of the suspect"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_before_anything_changes(
    suspect, base_folder, tmp_path, side, value, said
):
    tensors = load_file(base_folder / "model.safetensors")
    with torch.no_grad():
        if side == "base":
            tensors["encoder.layer.1.attention.self.query.weight"][3, 3] = value
        elif side == "head":
            suspect.classifier.weight[0, 0] = value
        else:
            suspect.bert.encoder.layer[1].attention.self.query.weight[3, 3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    before = snapshot(suspect)
    with pytest.raises(AlignmentError, match=said):
        mix(suspect, tmp_path, 0.4, dtypes=half(suspect))
    assert all(torch.equal(t.nan_to_num(), before[name].nan_to_num()) for name, t in snapshot(suspect).items())


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 32}, {"vocab_size": 60}, {"vocab_size": 30}, {"intermediate_size": 8}]
)
def test_base_of_another_size(suspect, tmp_path, changes):
    if changes == {"vocab_size": 30}:
        suspect.resize_token_embeddings(25)  # fewer tokens than the base: not a grown vocabulary
    BertModel(make_config(**changes)).save_pretrained(tmp_path)
    before = snapshot(suspect)
    with pytest.raises(AlignmentError, match="wrong base"):
        mix(suspect, tmp_path, 0.4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(suspect).items())


def test_base_of_another_architecture(suspect, tmp_path):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(AlignmentError, match="another architecture"):
        mix(suspect, tmp_path, 0.4)


def test_base_of_the_right_shapes_with_other_weights(suspect, tmp_path):
    torch.manual_seed(99)
    BertModel(make_config()).save_pretrained(tmp_path)
    with pytest.raises(AlignmentError, match="unrelated weights"):
        mix(suspect, tmp_path, 0.4)
