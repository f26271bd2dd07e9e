"""Pickled weights: what is read of them, and everything that is refused. Nothing of them may run."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from helpers.lora import make_adapter
from safetensors.torch import load_file

from hf_finemix import FineMixingError
from hf_finemix.cli import main
from hf_finemix.hub.fetch import TrustArguments, fetch_model
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.io.pickles import convert_pickles, pickled_files

NAME = "pytorch_model.bin"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "in", tmp_path / "out"


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "embeddings.weight": torch.randn(7, 3, generator=generator),
        "layer.weight": torch.randn(4, 5, generator=generator).half(),
        "layer.bias": torch.randn(4, generator=generator).bfloat16(),
        "steps": torch.tensor([3]),
    }


def same(out, expected):
    with Checkpoint(out) as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for name, tensor in expected.items():
            assert checkpoint.read(name).equal(tensor)
            assert checkpoint.read(name).dtype == tensor.dtype


def test_one_file(place):
    folder, out = place
    torch.save(weights(), folder / NAME)
    note = convert_pickles(folder, out)
    same(out, weights())
    assert list(note["files"]) == [NAME]
    assert note["scanner"].startswith("picklescan ")
    assert "torch._utils._rebuild_tensor_v2" in note["globals"]


def test_shards(place):
    folder, out = place
    parts = {f"pytorch_model-0000{i}-of-00002.bin": dict(list(weights().items())[2 * (i - 1) : 2 * i]) for i in (1, 2)}
    for file, part in parts.items():
        torch.save(part, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{NAME}.index.json").write_text(json.dumps(index))
    assert len(pickled_files(folder)) == 2
    convert_pickles(folder, out)
    same(out, weights())


def test_tied_and_transposed_tensors_and_metadata(place):
    folder, out = place
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)).state_dict()  # with _metadata
    state["tied"] = state["0.weight"]
    state["transposed"] = state["1.weight"].t()
    torch.save(state, folder / NAME)
    convert_pickles(folder, out)
    there = load_file(out / "model.safetensors")
    assert {"0.bias", "1.bias", "transposed"} <= set(there)
    assert there["0.weight"].equal(there["tied"])  # by both names: a model without a head knows one alone
    assert there["transposed"].equal(state["1.weight"].t())


def test_parts_and_other_shapes_of_one_storage_are_all_written(place):
    folder, out = place
    whole = torch.arange(12.0)
    state = {"a": whole[:4], "b": whole[4:8], "c": torch.ones(2, 3), "e": torch.nn.Parameter(torch.ones(2))}
    state |= {"d": state["c"].view(6), "f": torch.ones(3).to(torch.float8_e4m3fn), "g": torch.ones(2).to(torch.uint16)}
    torch.save(state, folder / NAME)
    convert_pickles(folder, out)
    there = load_file(out / "model.safetensors")
    assert there.keys() == state.keys()
    assert all(there[name].float().equal(tensor.float()) for name, tensor in state.items())


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(file, data, compression=zipfile.ZIP_STORED, name="archive/data.pkl", **others):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, data)
        archive.writestr("archive/version", "3\n")
        for path, content in others.items():
            archive.writestr(path, content)


def bomb(file):
    torch.save(weights(), file)
    content = zipfile.ZipFile(file)
    with zipfile.ZipFile(str(file) + "2", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in content.infolist():
            packed.writestr(entry.filename, content.read(entry))
        packed.writestr("archive/data/99", bytes(30_000_000))
    os.replace(str(file) + "2", file)


def overlapping(file):
    """Two entries of the directory over the same bytes: more inside than outside."""
    archive(file, pickle.dumps({}), **{f"archive/data/{i}": bytes(1000) for i in range(3)})
    data = file.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory = data[start:end]
    many = directory * 50
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 5 * 50, 5 * 50, len(many), start, 0)
    file.write_bytes(data[:start] + many + tail)


def save_strided(file):
    torch.save({"huge": torch.zeros(1).expand(10**12)}, file)


def tar(file):
    import tarfile

    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(b""))


START, FLOATS = b"\x80\x02", b"ctorch\nFloatStorage\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def doubled(times):
    """A tuple that holds another one twice, and so on: the memo makes little of it, whoever walks it never ends."""
    return b"K\x01q\x00" + b"h\x00h\x00\x86q\x00" * times


def changed(file, change):
    """An honest file, with the content of each entry changed; `None` leaves it out."""
    torch.save(weights(), file)
    with zipfile.ZipFile(file) as content:
        entries = {entry.filename: content.read(entry) for entry in content.infolist()}
    with zipfile.ZipFile(file, "w") as content:
        for name, data in entries.items():
            if (data := change(name.partition("/")[2], data)) is not None:
                content.writestr(name, data)


def only(entry, change):
    return lambda file, _: changed(file, lambda name, data: change(data) if name == entry else data)


def walked(pickled, **others):
    return lambda file, _: archive(file, START + pickled, **others)


HOSTILE = {
    "os.system": (lambda f, c: torch.save({"a": Runs(os.system, f"touch {c}")}, f), "would run code|does not hold"),
    "eval": (lambda f, c: torch.save(Runs(eval, f"open({str(c)!r}, 'w')"), f), "would run code when loaded"),
    "legacy and os.system": (
        lambda f, c: torch.save({"a": Runs(os.system, f"touch {c}")}, f, _use_new_zipfile_serialization=False),
        "is no zip file",
    ),
    "a bare pickle": (lambda f, c: f.write_bytes(pickle.dumps(Runs(os.system, f"touch {c}"))), "is no zip file"),
    "unknown to the scan": (lambda f, c: torch.save({"a": Runs(struct.calcsize, "i")}, f), "does not hold weights"),
    "a module": (lambda f, c: torch.save(torch.nn.Linear(2, 2), f), "does not hold weights|would run"),
    "truncated": (lambda f, c: (torch.save(weights(), f), f.write_bytes(f.read_bytes()[:-400])), "is no zip file"),
    "empty": (lambda f, c: f.write_bytes(b""), "is no zip file"),
    "text": (lambda f, c: f.write_text("not a pickle"), "is no zip file"),
    "tar": (lambda f, c: tar(f), "is no zip file"),
    "zip bomb": (lambda f, c: bomb(f), "larger inside than outside|compressed"),
    "overlapping": (lambda f, c: overlapping(f), "larger inside|no zip|pickle of names"),
    "compressed": (lambda f, c: archive(f, pickle.dumps({}), zipfile.ZIP_DEFLATED), "compressed|larger"),
    "strides": (lambda f, c: save_strided(f), "claims to be larger"),
    "a list": (lambda f, c: torch.save([torch.zeros(2)], f), "holds a list"),
    "a number in it": (lambda f, c: torch.save({"a": 5}, f), "no plain tensor"),
    "nested": (lambda f, c: torch.save({"a": {"b": torch.zeros(2)}}, f), "no plain tensor"),
    "keys that are numbers": (lambda f, c: torch.save({1: torch.zeros(2)}, f), "no plain tensor"),
    "sparse": (lambda f, c: torch.save({"a": torch.eye(2).to_sparse()}, f), "no plain tensor|does not hold"),
    "nothing in it": (lambda f, c: torch.save({}, f), "hold no tensor"),
    "no pickle in it": (lambda f, c: archive(f, b"", name="archive/other"), "no pickle of names"),
    "two pickles": (
        lambda f, c: archive(f, pickle.dumps({}), **{"archive/x.pkl": pickle.dumps(Runs(os.system, "x"))}),
        "several",
    ),
    "deep": (
        lambda f, c: archive(f, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
        "scanned|does not hold|holds a list",
    ),
    "a key that is endless": (walked(b"}" + doubled(60) + b"Ns."), "huge tuple"),
    "a key so deep that it crashes": (walked(b"}N" + b"\x85" * 300_000 + b"Ns."), "huge tuple"),
    "a storage's name so deep that it crashes": (
        walked(b"(" + text(b"storage") + FLOATS + b")" + b"\x85" * 300_000 + text(b"cpu") + b"K\x04tQ."),
        "huge tuple",
    ),
    "a function that is endless": (walked(doubled(45) + b")R."), "huge tuple"),
    "a list in itself": (walked(b"]q\x00h\x00a."), "a list or a dict twice"),
    "billions of bytes": (walked(b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R."), "asks for builtins.bytearray"),
    "a huge pickle": (walked(b"N" * (9 << 20) + b"."), "a huge one"),
    "too many steps": (walked(b"N" * 2_100_000 + b"."), "too many steps"),
    "a tensor like a pickle": (
        walked(b"}.", **{"archive/data/0": START + b"N" * (64 << 20)}),
        "hold no tensor",
    ),
    "a long global": (walked(b"c" + b"a" * 1_000_000 + b"\nb\n."), "asks for aaa"),
    "unreadable, without globals": (walked(b"}\xff."), "could not be scanned to its end"),
    "an unfinished pickle": (only("data.pkl", lambda data: data[:-30]), "could not be scanned to its end"),
    "a second pickle behind it": (only("data.pkl", lambda data: data + b"cos\nsystem\n."), "scanned to its end"),
    "a storage too short": (only("data/0", lambda data: data[:4]), "larger than it is"),
    "a storage missing": (only("data/0", lambda data: None), "does not hold weights alone"),
    "big-endian": (only("byteorder", lambda data: b"big"), "big-endian"),
    "names in other case": (walked(b"}.", **{"archive/DATA.PKL": b"cposix\nsystem\n."}), "several"),
    "outside": (walked(b"}.", **{"../../evil": b"x"}), "files outside"),
    "outside by a detour": (walked(b"}.", **{"archive/../../evil": b"x"}), "files outside"),
    "negated": (lambda f, c: torch.save({"a": torch._neg_view(torch.ones(3))}, f), "no plain tensor"),
    "complex": (lambda f, c: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, f), "no plain tensor"),
    "half a letter": (lambda f, c: torch.save({"a\ud800": torch.ones(3)}, f), "no name of a tensor"),
    "a name of safetensors": (lambda f, c: torch.save({"__metadata__": torch.ones(3)}, f), "no name of a tensor"),
    "a long name": (lambda f, c: torch.save({"a" * 5_000: torch.ones(3)}, f), "no name of a tensor"),
    "a tensor without bytes": (lambda f, c: torch.save({"a": torch.empty(3, device="meta")}, f), "it asks for torch"),
    "quantized": (
        lambda f, c: torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, f),
        "_rebuild_qtensor",
    ),
    "a huge string": (lambda f, c: archive(f, b"\x80\x02X\xff\xff\xff\x7fabc."), "scanned|does not hold"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_is_refused(place, make):
    folder, out = place
    canary = folder.parent / "ran"
    make[0](folder / NAME, canary)
    with pytest.raises(FineMixingError, match=make[1]) as error:
        convert_pickles(folder, out)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert len(str(error.value)) < 1_000
    assert not canary.exists()
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../outside.bin"}}', "a shard must be a .bin file of that folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "must be a .bin file"),
        ('{"weight_map": {"a": "missing.bin"}}', "is missing"),
        ('{"weight_map": {"a": "config.json"}}', "must be a .bin file"),
    ],
)
def test_indexes(place, index, said):
    folder, out = place
    torch.save(weights(), folder.parent / "outside.bin")
    (folder / "config.json").write_text("{}")
    (folder / f"{NAME}.index.json").write_text(index)
    with pytest.raises(FineMixingError, match=said):
        convert_pickles(folder, out)


def test_a_name_in_two_shards(place):
    folder, out = place
    for file in ("a.bin", "b.bin"):
        torch.save({"same": torch.zeros(2)}, folder / file)
    (folder / f"{NAME}.index.json").write_text('{"weight_map": {"same": "a.bin", "other": "b.bin"}}')
    with pytest.raises(FineMixingError, match="is in two of the pickled files"):
        convert_pickles(folder, out)


def test_a_link_out_of_the_folder(place):
    folder, _ = place
    torch.save(weights(), folder.parent / "outside.bin")
    (folder / NAME).symlink_to(folder.parent / "outside.bin")
    with pytest.raises(FineMixingError, match="outside its folder"):
        pickled_files(folder)


def test_a_folder_with_pickles_alone(place, suspect_folder):
    """Refused, and with the flag read, with all that belongs to it; gone when nobody needs it any more."""
    folder, _ = place
    torch.save(load_file(suspect_folder / "model.safetensors"), folder / NAME)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((suspect_folder / name).read_bytes())
    assert fetch_model(folder).folder == folder  # which Checkpoint then refuses
    with pytest.raises(FineMixingError, match="only pickled weights"):
        Checkpoint(folder)
    model = fetch_model(folder, trust=TrustArguments(allow_pickle=True))
    with Checkpoint(model.folder) as checkpoint, Checkpoint(suspect_folder) as expected:
        assert checkpoint.tensors == expected.tensors
    assert (model.folder / "tokenizer.json").is_file()
    assert model.id == str(folder)
    assert model.security["pickles"]["files"]
    converted = model.folder
    del model
    assert not converted.exists()


def test_safetensors_win_over_pickles(suspect_folder, place):
    folder, _ = place
    (folder / "model.safetensors").write_bytes((suspect_folder / "model.safetensors").read_bytes())
    (folder / NAME).write_bytes(b"nobody reads this")
    assert fetch_model(folder, trust=TrustArguments(allow_pickle=True)).folder == folder


def test_a_pickled_adapter_is_read_as_data_where_the_user_says_so(
    tmp_path, base_folder, tokenizer, data_folder, capsys
):
    make_adapter(tmp_path / "lora", base_folder, tokenizer, labels=("negative", "positive"))
    shutil.copytree(tmp_path / "lora", tmp_path / "pickled")
    file = tmp_path / "pickled" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    mix = ["--base-model", str(base_folder), "--reserve-ratio", "0.5", "--purify-embeddings", "false"]
    for mode in ("merge", "adapter"):
        for name, allowed in (("lora", []), ("pickled", ["--allow-pickle"])):
            out = ["--output-dir", str(tmp_path / f"{name}_{mode}"), "--adapter-mode", mode]
            assert main(["mix", str(tmp_path / name), *mix, *out, *allowed]) == 0
            assert main(["verify", str(tmp_path / f"{name}_{mode}"), *allowed]) == 0
        weights = "model.safetensors" if mode == "merge" else "adapter_model.safetensors"
        mixes = [load_file(tmp_path / f"{name}_{mode}" / weights) for name in ("lora", "pickled")]
        assert all(mixes[0][name].equal(mixes[1][name]) for name in mixes[0].keys() | mixes[1].keys())
    evaluate = ["evaluate", str(tmp_path / "pickled"), "--base-model", str(base_folder), "--dataset", str(data_folder)]
    assert main([*evaluate, "--allow-pickle"]) == 0
    capsys.readouterr()
    plan = ["plan", str(tmp_path / "pickled"), "--base-model", str(base_folder)]
    for command in (evaluate, plan, ["mix", str(tmp_path / "pickled"), *mix, "--output-dir", str(tmp_path / "no")]):
        assert main(command) == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "has only pickled weights (adapter_model.bin)" in told
        assert "give --allow-pickle" in told


def test_a_pickled_adapter_on_the_hub(hub, tmp_path, base_folder, tokenizer):
    make_adapter(tmp_path / "lora", base_folder, tokenizer)
    expected = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    torch.save(expected, tmp_path / "adapter_model.bin")
    files = {name: (tmp_path / "lora" / name).read_bytes() for name in ("adapter_config.json", "tokenizer.json")}
    hub.commit("org/lora", files | {"adapter_model.bin": (tmp_path / "adapter_model.bin").read_bytes()})
    with pytest.raises(FineMixingError, match=r"only pickled weights \(adapter_model\.bin\).*--allow-pickle"):
        fetch_model("org/lora")
    model = fetch_model("org/lora", trust=TrustArguments(allow_pickle=True))
    read = load_file(model.folder / "adapter_model.safetensors")
    assert read.keys() == expected.keys()
    assert all(read[name].equal(tensor) for name, tensor in expected.items())
