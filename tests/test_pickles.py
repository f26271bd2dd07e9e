"""Pickled weights: what is read of them, and everything that is refused. Nothing of them may run."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from hf_finemix import FineMixingError
from hf_finemix.checkpoint import Checkpoint
from hf_finemix.hub import TrustArguments, fetch_model
from hf_finemix.pickles import convert_pickles, pickled_files

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
    assert len({"0.weight", "tied"} & set(there)) == 1  # transformers ties the other one again
    assert there["transposed"].equal(state["1.weight"].t())


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
    assert "weights_only=False" not in str(error.value)
    assert not canary.exists()
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../outside.bin"}}', "no .bin file of that folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no .bin file"),
        ('{"weight_map": {"a": "missing.bin"}}', "no .bin file"),
        ('{"weight_map": {"a": "config.json"}}', "no .bin file"),
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
