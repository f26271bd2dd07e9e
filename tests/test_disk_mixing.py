"""Mixing on disk against mixing in memory: the same bytes, whatever the files look like."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.reports import check_schema
from helpers.toy import drifted, make_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification, BertModel

from hf_finemix import (
    Checkpoint,
    FineMixingConfig,
    FineMixingError,
    mix_checkpoints,
    mix_model,
    verify_mix,
)
from hf_finemix.align.names import named_tensors
from hf_finemix.cli import main
from hf_finemix.hub.fetch import TrustArguments
from hf_finemix.io.shard_writer import ShardWriter, parse_size
from hf_finemix.mix.token_frequency import token_frequencies
from hf_finemix.report.report import CleaningReport


def config(ratio=0.4, **options):
    return FineMixingConfig(reserve_ratio=ratio, **{"purify_embeddings": False, **options})


def weights(folder):
    """All tensors of a folder, by the library's own reader."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def in_memory(suspect, base, settings, tokenizer=None):
    """What the Trainer's path gives, back in the dtypes of the suspect's files, by canonical name."""
    model = BertForSequenceClassification.from_pretrained(suspect, dtype=torch.float32)
    wide = torch.float64 if any(t.dtype == torch.float64 for t in weights(suspect).values()) else torch.float32
    model.to(wide).load_state_dict({name: tensor.to(wide) for name, tensor in weights(suspect).items()})
    dtypes = {name.removeprefix("bert."): tensor.dtype for name, tensor in weights(suspect).items()}
    options = {}
    if settings.purify_embeddings:
        options = {
            "token_frequencies": token_frequencies(tokenizer),
            "special_token_ids": tokenizer.all_special_ids,
        }
    with Checkpoint(base) as checkpoint:
        record = mix_model(model, checkpoint, settings, dtypes=dtypes, **options)
    return {name: t.detach().to(dtypes[name]) for name, t in named_tensors(model).tensors.items()}, record


def assert_same(folder, expected):
    mixed = {name.removeprefix("bert."): tensor for name, tensor in weights(folder).items()}
    assert mixed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (mixed[name].shape, mixed[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(bits(mixed[name]), bits(tensor)), name


def saved(model, folder, tokenizer, shards="50GB"):
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pair(suspect_folder, base_folder):
    return suspect_folder, base_folder


@pytest.fixture
def copied(pair, tmp_path):
    """The pair as copies to change."""
    return [shutil.copytree(folder, tmp_path / name) for folder, name in zip(pair, ("s", "b"), strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": 0.0},
        {"ratio": 1.0},
        {"mixing_seed": 2**63 - 1},
        {"strategy": "average"},
        {"module_ratios": {"attention": 0.9, r"layer\.1": 0.0, "norm": 1.0}},
        {"purify_embeddings": True, "num_purified_tokens": 9},
        {"purify_embeddings": True, "num_purified_tokens": 9, "strategy": "average"},
    ],
)
def test_the_bytes_are_those_of_mixing_in_memory(pair, tokenizer, tmp_path, options):
    settings = config(**options)
    report = mix_checkpoints(*pair, tmp_path / "out", settings)
    check_schema(report)
    expected, record = in_memory(*pair, settings, tokenizer)
    assert_same(tmp_path / "out", expected)
    told = report.mixing["tensors"]
    assert {n: t["kept_fraction"] for n, t in told.items()} == {
        n: t["kept_fraction"] for n, t in record.tensors.items()
    }
    assert {n: t["rule"] for n, t in told.items()} == {n: t["rule"] for n, t in record.tensors.items()}
    assert report.mixing["ignored_base_tensors"] == record.ignored_base_tensors
    without_token = [{key: entry[key] for key in entry if key != "token"} for entry in report.purified_tokens]
    assert without_token == record.purified_tokens
    assert bool(report.purified_tokens) == settings.purify_embeddings


@pytest.mark.parametrize("suspect_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_two_dtypes(pair, tokenizer, tmp_path, suspect_dtype, base_dtype):
    folders = []
    for folder, dtype in zip(pair, (suspect_dtype, base_dtype), strict=True):
        shutil.copytree(folder, tmp_path / folder.name)
        save_file({n: t.to(dtype) for n, t in weights(folder).items()}, tmp_path / folder.name / "model.safetensors")
        folders.append(tmp_path / folder.name)
    mix_checkpoints(*folders, tmp_path / "out", config())
    assert_same(tmp_path / "out", in_memory(*folders, config())[0])


@pytest.mark.parametrize("options", [{}, {"strategy": "average"}, {"purify_embeddings": True}])
def test_several_dtypes_in_one_model(copied, tokenizer, tmp_path, options):
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for folder, shift in zip(copied, (0, 1), strict=True):
        tensors = {n: t.to(dtypes[(i + shift) % 4]) for i, (n, t) in enumerate(sorted(weights(folder).items()))}
        save_file(tensors, folder / "model.safetensors")
    settings = config(num_purified_tokens=5, **options)
    mix_checkpoints(*copied, tmp_path / "out", settings)
    assert_same(tmp_path / "out", in_memory(*copied, settings, tokenizer)[0])


@pytest.mark.parametrize("shards", [("50GB", "4KB"), ("4KB", "50GB"), ("7KB", "3KB")])
@pytest.mark.parametrize(("size", "workers"), [("5GB", 1), ("1B", 3), ("5KB", 8)])
def test_no_layout_of_files_and_no_number_of_workers_matters(pair, tokenizer, tmp_path, shards, size, workers):
    suspect = BertForSequenceClassification.from_pretrained(pair[0])
    saved(suspect, tmp_path / "s", tokenizer, shards[0])
    saved(BertModel.from_pretrained(pair[1]), tmp_path / "b", tokenizer, shards[1])
    mix_checkpoints(
        tmp_path / "s", tmp_path / "b", tmp_path / "out", config(), max_shard_size=size, num_workers=workers
    )
    assert_same(tmp_path / "out", in_memory(*pair, config())[0])
    again = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float16
    largest = max(t.nbytes for t in weights(tmp_path / "out").values())
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert sum(t.nbytes for t in load_file(file).values()) <= max(parse_size(size), largest)


def test_tensors_larger_than_a_piece_and_than_a_chunk(pair, tmp_path, monkeypatch):
    expected = in_memory(*pair, config())[0]
    monkeypatch.setattr("hf_finemix.mix.on_disk.CHUNK_ON_DISK", 37)
    monkeypatch.setattr("hf_finemix.mix.on_disk.PIECE_ELEMENTS", 101)
    monkeypatch.setattr("hf_finemix.align.pair_on_disk.CHUNK_ON_DISK", 50)
    monkeypatch.setattr("hf_finemix.mix.purification.CHUNK_ON_DISK", 50)
    mix_checkpoints(*pair, tmp_path / "out", config(), num_workers=4)
    assert_same(tmp_path / "out", expected)
    with_e_pur = config(purify_embeddings=True, num_purified_tokens=7)
    report = mix_checkpoints(*pair, tmp_path / "purified", with_e_pur)
    mixed, base = weights(tmp_path / "purified"), weights(pair[1])
    name = "embeddings.word_embeddings.weight"
    for entry in report.purified_tokens:
        assert torch.equal(mixed[f"bert.{name}"][entry["id"]], base[name][entry["id"]].half())


def test_a_grown_vocabulary_keeps_its_new_rows(pair, tokenizer, tmp_path):
    model = BertForSequenceClassification.from_pretrained(pair[0])
    rows = model.config.vocab_size
    model.resize_token_embeddings(rows + 3)
    suspect = saved(model, tmp_path / "s", tokenizer)
    for settings in (config(), config(purify_embeddings=True, num_purified_tokens=4)):
        out = tmp_path / f"out-{settings.purify_embeddings}"
        report = mix_checkpoints(suspect, pair[1], out, settings)
        assert_same(out, in_memory(suspect, pair[1], settings, tokenizer)[0])
        name = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(weights(out)[name][rows:], weights(suspect)[name][rows:])
    check_schema(report)
    assert [entry["id"] for entry in report.mixing["added_tokens"]] == [rows, rows + 1, rows + 2]


@pytest.mark.parametrize("same", [True, False, "but for a sign of zero"])
def test_tied_weights_under_both_names(pair, tokenizer, tmp_path, same):
    torch.manual_seed(3)
    base = BertForMaskedLM(make_config())
    saved(base, tmp_path / "b", tokenizer)
    suspect = saved(drifted(base).half(), tmp_path / "s", tokenizer)
    tensors = weights(suspect)
    embedding, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert decoder not in tensors
    tensors[embedding][3, 5] = 0.0
    tensors[decoder] = tensors[embedding].clone() if same else tensors[embedding] * 2
    if same not in (True, False):  # equal numbers, as transformers asks
        tensors[decoder][3, 5], same = -0.0, True
    save_file(tensors, suspect / "model.safetensors")
    report = mix_checkpoints(suspect, tmp_path / "b", tmp_path / "out", config())
    mixed = weights(tmp_path / "out")
    assert (decoder in mixed) is not same  # written once where it is one weight, as save_pretrained does
    assert ("cls.predictions.decoder.weight" in report.mixing["tensors"]) is not same
    model = BertForMaskedLM.from_pretrained(suspect, dtype=torch.float32)
    with Checkpoint(tmp_path / "b") as checkpoint:
        dtypes = dict.fromkeys([*named_tensors(model).tensors], torch.float16)
        mix_model(model, checkpoint, config(), dtypes=dtypes)
    for name, tensor in named_tensors(model).tensors.items():
        there = next(mixed[n] for n in (name, f"bert.{name}") if n in mixed)
        assert torch.equal(bits(there), bits(tensor.detach().half())), name


def test_a_suspect_that_has_only_the_other_name_of_a_tied_weight(tokenizer, tmp_path):
    torch.manual_seed(3)
    base = BertForMaskedLM(make_config())
    saved(base, tmp_path / "b", tokenizer)
    suspect = saved(drifted(base).half(), tmp_path / "s", tokenizer)
    mix_checkpoints(suspect, tmp_path / "b", tmp_path / "out", config())
    tensors = weights(suspect)
    embedding, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    tensors[decoder] = tensors.pop(embedding)
    save_file(tensors, suspect / "model.safetensors")
    mix_checkpoints(suspect, tmp_path / "b", tmp_path / "other", config())
    assert torch.equal(bits(weights(tmp_path / "out")[embedding]), bits(weights(tmp_path / "other")[decoder]))


def test_old_names_are_renamed_as_transformers_does(copied, pair, tmp_path):
    for folder in copied:
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in weights(folder).items()
        }
        save_file(tensors, folder / "model.safetensors")
    report = mix_checkpoints(*copied, tmp_path / "out", config())
    renamed = {
        name.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias"): tensor
        for name, tensor in weights(tmp_path / "out").items()
    }
    expected = in_memory(*pair, config())[0]
    assert set(report.mixing["tensors"]) == set(expected)
    assert all(torch.equal(bits(renamed[name]), bits(tensor)) for name, tensor in expected.items())


def test_what_the_class_has_no_place_for_is_left_out_as_in_memory(copied, pair, tmp_path):
    """Old checkpoints hold positions, or masks of minus infinity, that transformers ignores."""
    for folder, prefix, count in zip(copied, ("bert.", ""), (64, 70), strict=True):
        tensors = weights(folder)
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(count)[None]
        tensors[f"{prefix}masked_bias"] = torch.full((3,), float("-inf"), dtype=torch.float16)
        save_file(tensors, folder / "model.safetensors")
    report = mix_checkpoints(*copied, tmp_path / "out", config())
    assert_same(tmp_path / "out", in_memory(*pair, config())[0])
    ignored = ["bert.embeddings.position_ids", "bert.masked_bias"]
    assert report.mixing["ignored_suspect_tensors"] == ignored
    assert set(report.mixing["ignored_base_tensors"]) == {"embeddings.position_ids", "masked_bias"}
    assert verify_mix(tmp_path / "out").ok


def test_a_class_of_another_model_type_is_refused(copied, tmp_path):
    """transformers goes by model_type: another class has other names, and with them other masks and embeddings."""
    set_config(copied[0], architectures=["RobertaForSequenceClassification"])
    with pytest.raises(
        FineMixingError, match="model_type 'bert', and RobertaForSequenceClassification is of 'roberta'"
    ):
        mix_checkpoints(*copied, tmp_path / "out", config())


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001])
def test_no_nan_of_the_base_becomes_a_number(copied, tmp_path, bits):
    """Rounding adds to the bits of a number: those of the largest NaN would turn into those of zero."""
    for folder in copied:
        save_file({n: t.bfloat16() for n, t in weights(folder).items()}, folder / "model.safetensors")
    change(copied[1], lambda t: t.update({QUERY: t[QUERY].float()}))
    change(copied[1], lambda t: t[QUERY].view(torch.int32).view(-1)[3:4].fill_(bits))
    with pytest.raises(FineMixingError, match=r"query.weight of the base\)"):
        mix_checkpoints(*copied, tmp_path / "out", config(1.0))


def test_few_files_are_open_at_a_time(pair, tokenizer, tmp_path):
    resource = pytest.importorskip("resource")
    saved(BertForSequenceClassification.from_pretrained(pair[0]), tmp_path / "s", tokenizer, "0.2KB")
    saved(BertModel.from_pretrained(pair[1]), tmp_path / "b", tokenizer, "0.2KB")
    assert len(list((tmp_path / "s").glob("*.safetensors"))) >= 20
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = max(map(int, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 25, limits[1]))
    try:
        mix_checkpoints(
            tmp_path / "s", tmp_path / "b", tmp_path / "out", config(), max_shard_size="200B", num_workers=4
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert_same(tmp_path / "out", in_memory(*pair, config())[0])


def test_purified_rows_are_those_of_cleaning_where_the_padding_token_is_a_word(copied, tmp_path):
    """A model that pads with a word: that word is special, and never purified."""
    plain = mix_checkpoints(*copied, tmp_path / "plain", config(purify_embeddings=True, num_purified_tokens=5))
    worst = plain.purified_tokens[0]["id"]
    set_config(copied[0], pad_token_id=worst)
    report = mix_checkpoints(*copied, tmp_path / "out", config(purify_embeddings=True, num_purified_tokens=5))
    assert worst not in [entry["id"] for entry in report.purified_tokens]


def change(folder, edit):
    tensors = weights(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def set_config(folder, **values):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("spoil", "settings", "said"),
    [
        (lambda s, b: None, {"ratio": "auto"}, "which only clean can choose"),
        (lambda s, b: None, {"head": "reinit"}, "use 'keep'"),
        (lambda s, b: set_config(s, quantization_config={"quant_method": "gptq"}), {}, r"quantized \(gptq\)"),
        (lambda s, b: set_config(s, architectures=None), {}, "names no model class"),
        (lambda s, b: set_config(s, architectures=["NoSuchModel"]), {}, "no model class NoSuchModel"),
        (lambda s, b: (s / "config.json").unlink(), {}, "config.json is missing"),
        (lambda s, b: (s / "adapter_config.json").write_text("{}"), {}, "adapter"),
        (
            lambda s, b: change(s, lambda t: t.update({f"bert.{QUERY}": t[f"bert.{QUERY}"].to(torch.float8_e4m3fn)})),
            {},
            "8-bit floats.*query.weight",
        ),
        (
            lambda s, b: change(s, lambda t: t.update({f"bert.{QUERY}": t[f"bert.{QUERY}"].to(torch.int8)})),
            {},
            "query.weight: int8 and float32 cannot be mixed",
        ),
        (
            lambda s, b: change(s, lambda t: t[f"bert.{QUERY}"][3].fill_(float("nan"))),
            {},
            "NaN or infinite weights in 1 tensors .*query.weight of the suspect",
        ),
        (
            lambda s, b: change(b, lambda t: t[QUERY][3].fill_(float("inf"))),
            {"ratio": 1.0},
            r"NaN or infinite .*query.weight of the base\)",
        ),
        (
            lambda s, b: change(b, lambda t: t[QUERY][3].fill_(1e6)),
            {},
            "query.weight of the base, which overflows in float16",
        ),
        (
            lambda s, b: change(b, lambda t: [tensor.normal_() for tensor in t.values()]),
            {},
            "unrelated weights",
        ),
        (lambda s, b: change(b, lambda t: t.update({QUERY: torch.zeros(3, 3)})), {}, "the wrong base"),
    ],
)
def test_what_cannot_be_mixed_is_told_and_leaves_nothing(copied, tmp_path, spoil, settings, said):
    suspect, base = copied
    spoil(suspect, base)
    with pytest.raises(FineMixingError, match=said) as error:
        mix_checkpoints(suspect, base, tmp_path / "new" / "out", config(**settings))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "s"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_shard_size": "many"}, "max_shard_size is 'many'"),
        ({"max_shard_size": 0}, "max_shard_size is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"base_model": None}, "is not known, it names none"),
        ({"base_model": "no/such/thing"}, "neither a folder nor a Hub id"),
    ],
)
def test_settings_out_of_range(pair, tmp_path, options, said):
    with pytest.raises(FineMixingError, match=said):
        mix_checkpoints(
            pair[0], **{"base_model": pair[1], "output_dir": tmp_path / "out", "mixing_config": config(), **options}
        )
    assert not (tmp_path / "out").exists()


def test_no_room_on_the_disk(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(FineMixingError, match="MB free"):
        mix_checkpoints(*pair, tmp_path / "out", config())
    assert not list(tmp_path.iterdir())


def test_the_output_may_not_be_what_is_read(copied, tmp_path):
    with pytest.raises(FineMixingError, match="is or holds"):
        mix_checkpoints(*copied, copied[1], config(), overwrite=True)
    with pytest.raises(FineMixingError, match="is or holds"):
        mix_checkpoints(*copied, tmp_path, config(), overwrite=True)


def test_an_earlier_mix_is_replaced_only_on_demand(pair, tmp_path):
    mix_checkpoints(*pair, tmp_path / "out", config(0.0))
    with pytest.raises(FineMixingError, match="--overwrite"):
        mix_checkpoints(*pair, tmp_path / "out", config(1.0))
    mix_checkpoints(*pair, tmp_path / "out", config(1.0), overwrite=True)
    assert_same(tmp_path / "out", {n.removeprefix("bert."): t for n, t in weights(pair[0]).items()})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_beside_the_weights(copied, tmp_path):
    set_config(copied[0], auto_map={"AutoModel": "evil--code.Model"}, _attn_implementation="org/kernel")
    (copied[0] / "generation_config.json").write_text('{"top_k": 3, "custom_pipelines": {}}')
    (copied[0] / "tokenizer_config.json").write_text('{"chat_template": "/etc/passwd"}')
    with pytest.raises(FineMixingError, match=r"asks for code of its own \(auto_map in config.json\)"):
        mix_checkpoints(*copied, tmp_path / "out", config(0.25))
    trust = TrustArguments(ignore_custom_code=[str(copied[0])])
    mix_checkpoints(*copied, tmp_path / "out", config(0.25), trust=trust)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    assert "kernel" not in (tmp_path / "out" / "config.json").read_text()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"top_k": 3}
    theirs = (copied[1] / "tokenizer_config.json").read_text()
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == theirs  # the base's
    assert FineMixingConfig.from_pretrained(tmp_path / "out").reserve_ratio == 0.25
    report = CleaningReport.load(tmp_path / "out")
    assert report.suspect["id"] == str(copied[0])
    left = {"chat_template": None, "chat_template_left": True}
    assert report.tokenizer == {"source": "base", "differences": [], **left}
    assert report.before == report.after == {}


def test_a_suspect_with_another_tokenizer_keeps_its_tokenizer_file_with_the_bases_settings(copied, tmp_path):
    content = json.loads((copied[0] / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    (copied[0] / "tokenizer.json").write_text(json.dumps(content))
    report = mix_checkpoints(*copied, tmp_path / "out", config())
    assert report.tokenizer == {"source": "suspect", "differences": ["normalizer"]}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (copied[0] / "tokenizer.json").read_text()
    mixed, base = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", copied[1]))
    assert (mixed.special_tokens_map, mixed.model_max_length) == (base.special_tokens_map, base.model_max_length)


def test_weights_alone_can_be_mixed_without_a_tokenizer(copied, tmp_path):
    for folder in copied:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(FineMixingError, match="--purify-embeddings false"):
        mix_checkpoints(*copied, tmp_path / "out", config(purify_embeddings=True))
    report = mix_checkpoints(*copied, tmp_path / "out", config())
    assert report.tokenizer["source"] is None


def test_command(pair, tmp_path, capsys):
    flags = ["--base-model", str(pair[1]), "--reserve-ratio", "0.4", "--purify-embeddings", "false"]
    assert main(["mix", str(pair[0]), *flags, "--output-dir", str(tmp_path / "out")]) == 0
    assert "tensors mixed at ρ = 0.4, 2 kept" in capsys.readouterr().out
    assert_same(tmp_path / "out", in_memory(*pair, config())[0])
    assert main(["mix", str(pair[0]), *flags, "--output-dir", str(tmp_path / "json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mixing"]["reserve_ratio"] == 0.4


def test_neither_mix_nor_plan_nor_verify_imports_torch(pair, tmp_path):
    mix_checkpoints(*pair, tmp_path / "once", config())  # so that the classes have told their names
    code = """
import sys
from hf_finemix.cli import main
suspect, base, out = sys.argv[1:]
common = [suspect, "--base-model", base, "--purify-embeddings", "false"]
assert main(["plan", *common]) == main(["mix", *common, "--reserve-ratio", "0.4", "--output-dir", out]) == 0
assert main(["verify", out]) == 0
heavy = {"torch", "datasets", "evaluate", "accelerate", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, *map(str, pair), str(tmp_path / "out")], check=True)


def test_shards_are_what_the_library_reads(tmp_path):
    from hf_finemix.io.checkpoint import TensorInfo

    tensors = {
        "a": torch.arange(7, dtype=torch.int8),
        "b": torch.randn(3, 5),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "c": torch.randn(2, 2, dtype=torch.float64),
    }
    with ShardWriter(tmp_path, {name: TensorInfo.of(tensor) for name, tensor in tensors.items()}, 70) as writer:
        for name, tensor in reversed(tensors.items()):
            data = memoryview(bits(tensor).numpy())
            for start in range(0, len(data), 3):
                writer.write(name, data[start : start + 3], start)
    read = weights(tmp_path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert Checkpoint(tmp_path).tensors.keys() == tensors.keys()
    with safe_open(next(tmp_path.glob("*.safetensors")), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5kB", 1500), ("2GiB", 2**31), ("17", 17), (9, 9), (" 1 MB ", 10**6)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.fixture(scope="module")
def large_pair(tmp_path_factory, tokenizer):
    """25 MB each: enough that a process can be killed in the midst of writing."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    base = BertModel(make_config(hidden_size=256, intermediate_size=4096, num_hidden_layers=2))
    saved(base, folder / "b", tokenizer)
    torch.manual_seed(0)
    suspect = BertForSequenceClassification(make_config(hidden_size=256, intermediate_size=4096, num_hidden_layers=2))
    suspect.bert.load_state_dict(base.state_dict())
    saved(drifted(suspect), folder / "s", tokenizer)
    return folder / "s", folder / "b"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_killed_at_any_moment_nothing_looks_finished(large_pair, tmp_path):
    command = [sys.executable, "-m", "hf_finemix", "mix", str(large_pair[0]), "--base-model", str(large_pair[1])]
    command += ["--reserve-ratio", "0.4", "--purify-embeddings", "false", "--num-workers", "1"]
    command += ["--max-shard-size", "5MB", "--output-dir", str(tmp_path / "out")]
    subprocess.run([*command, "--overwrite"], check=True, capture_output=True)  # the class has told its names then
    started = time.monotonic()
    subprocess.run([*command, "--overwrite"], check=True, capture_output=True)
    whole, expected = time.monotonic() - started, weights(tmp_path / "out")
    rng = random.Random(0)
    for _ in range(8):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * rng.uniform(0.4, 1.0))
        process.kill()
        process.wait()
        if (tmp_path / "out").exists():  # then it is whole
            assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupted_it_leaves_nothing(large_pair, tmp_path):
    code = """
import sys, signal, threading
from hf_finemix.cli import main
from hf_finemix.mix import on_disk
mixed = on_disk.Workspace.mixed_chunks
def interrupted(self, *arguments):
    signal.raise_signal(signal.SIGTERM)  # Python handles it in the main thread
    return mixed(self, *arguments)
on_disk.Workspace.mixed_chunks = interrupted
sys.exit(main(sys.argv[1:]))
"""
    flags = [str(large_pair[0]), "--base-model", str(large_pair[1]), "--reserve-ratio", "0.4"]
    flags += ["--purify-embeddings", "false", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, "mix", *flags], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "hf-finemix: interrupted, nothing was written.\n")
    assert not list(tmp_path.iterdir())


def test_values_outside_float16_of_a_kept_tensor_stay(copied, tmp_path):
    """What is not mixed is copied, bit for bit."""
    change(copied[0], lambda t: t.update({"classifier.bias": torch.tensor([6e4, -0.0]).half()}))
    mix_checkpoints(*copied, tmp_path / "out", config())
    assert np.signbit(weights(tmp_path / "out")["classifier.bias"].numpy()).tolist() == [False, True]
