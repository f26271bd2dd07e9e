"""A model folder from a stranger is read rightly or refused in one line. It never crashes, hangs or reaches out."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.hostile_files import (
    CONFIG,
    FORGED,
    HARMLESS_BUT_ODD,
    HOSTILE,
    HOSTILE_CONFIG,
    INDEX,
    ODD_CONFIG,
    RAN,
    SECRET,
    SHARDS,
    WEIGHTS,
    shard,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_finemix.cli import main
from hf_finemix.errors import FineMixingError
from hf_finemix.io.checkpoint import Checkpoint

pytestmark = [pytest.mark.hostile, pytest.mark.skipif(os.name != "posix", reason="makes pipes and links")]

LONGEST_MESSAGE = 6000  # a path and a few names: fits a screen, whatever the names


@pytest.fixture(autouse=True)
def bounded_memory():
    """A folder that asks for terabytes gets an error at 8 GB, and not the whole machine."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def folder(tmp_path, suspect_folder):
    """A valid folder of the test's own, to be turned into an attack, with nothing else beside it."""
    return Path(shutil.copytree(suspect_folder, tmp_path / "suspect"))


def attacked(folder, attacks, name):
    if "unreadable" in name and os.geteuid() == 0:
        pytest.skip("root may read everything")
    attacks[name](folder)


def check_line(line):
    """It can be shown on any terminal, as the one line that it is."""
    unprintable = {sign for sign in line if not sign.isprintable()}
    assert not unprintable
    assert len(line) <= LONGEST_MESSAGE
    assert not line.startswith(FORGED)
    assert SECRET not in line


def load(folder):
    """The tensors of a folder, each read; `None` where it is refused as it should be."""
    try:
        with Checkpoint(folder) as checkpoint:
            tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
            for name, info in checkpoint.tensors.items():
                assert tuple(tensors[name].shape) == info.shape
                assert str(tensors[name].dtype) == f"torch.{info.dtype}"
            return tensors
    except FineMixingError as error:
        check_line(str(error))
        return None


def raw(tensor):
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# ---- Checkpoint -----------------------------------------------------------------------------------------------------


def test_the_folders_are_valid_before_the_attack(folder):
    single = load(folder)
    shard(folder)
    split = load(folder)
    assert single.keys() == split.keys()
    assert all(torch.equal(single[name], split[name]) for name in single)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused(folder, name):
    attacked(folder, HOSTILE, name)
    with pytest.raises(FineMixingError) as error:
        Checkpoint(folder)
    check_line(str(error.value))
    assert not (folder.parent / RAN).exists()


@pytest.mark.parametrize("name", HARMLESS_BUT_ODD)
def test_odd_weights_are_read_or_refused(folder, name):
    attacked(folder, HARMLESS_BUT_ODD, name)
    tensors = load(folder)
    assert not (folder.parent / RAN).exists()
    if tensors and (folder / WEIGHTS).is_file():
        with safe_open(folder / WEIGHTS, framework="pt") as handle:
            assert tensors.keys() == set(handle.keys())
            for key in list(tensors)[:1000]:
                assert raw(tensors[key]) == raw(handle.get_tensor(key))


def test_a_link_to_the_folder_is_no_link_out_of_it(folder):
    (folder.parent / "link").symlink_to("suspect")
    assert load(folder.parent / "link")


# ---- The Hub's cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path, folder):
    """The folder as the Hub's cache has it: links to blobs that are named by their hash."""
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    shard(Path(shutil.copytree(folder, tmp_path / "split")))
    for i, file in enumerate([*folder.iterdir(), *(tmp_path / "split" / name for name in (*SHARDS, INDEX))]):
        blob = f"{i:064x}"
        shutil.copy(file, repo / "blobs" / blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    shutil.copy(folder / WEIGHTS, tmp_path / "secret")
    return snapshot


@pytest.mark.parametrize("gone", [[*SHARDS, INDEX], [WEIGHTS]], ids=["single", "sharded"])
def test_the_cache_of_the_hub_is_read(snapshot, folder, gone):
    for file in gone:
        (snapshot / file).unlink()
    tensors = load(snapshot)
    assert tensors
    assert {name: raw(tensor) for name, tensor in tensors.items()} == {
        name: raw(tensor) for name, tensor in load(folder).items()
    }


@pytest.mark.parametrize(
    "target",
    [
        "../../../../secret",
        "../../blobs/../../../secret",
        "../../blobs/linked",
        "../../refs/main",
        "../../../models--org--other/blobs/0",
    ],
)
@pytest.mark.parametrize("file", [WEIGHTS, SHARDS[0], INDEX])
def test_links_of_the_cache_to_elsewhere_are_refused(snapshot, tmp_path, target, file):
    if file == INDEX:
        shutil.copy(snapshot / INDEX, tmp_path / "secret")
    if file != WEIGHTS:
        (snapshot / WEIGHTS).unlink()
        if file == SHARDS[0]:
            shutil.copy(snapshot / file, tmp_path / "secret")
    repo = snapshot.parent.parent
    (repo / "blobs" / "linked").symlink_to("../../../secret")
    for path in (repo / "refs" / "main", repo.parent / "models--org--other" / "blobs" / "0"):
        path.parent.mkdir(parents=True)
        shutil.copy(tmp_path / "secret", path)
    (snapshot / file).unlink(missing_ok=True)
    (snapshot / file).symlink_to(target)
    assert (snapshot / file).is_file()
    with pytest.raises(FineMixingError) as error:
        Checkpoint(snapshot)
    check_line(str(error.value))


@pytest.mark.parametrize("names", [("models--org--name", "commits"), ("org--name", "snapshots")])
def test_what_only_looks_like_the_cache_is_none(tmp_path, folder, names):
    repo = tmp_path / names[0]
    (repo / "blobs").mkdir(parents=True)
    (repo / names[1]).mkdir()
    (folder / WEIGHTS).rename(repo / "blobs" / "0")
    folder = folder.rename(repo / names[1] / "0")
    (folder / WEIGHTS).symlink_to("../../blobs/0")
    assert load(folder) is None


# ---- Command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(request, folder, base_folder, monkeypatch):
    """The arguments of a command on the folder. What is no error of the folder's comes through as it is."""
    monkeypatch.setenv("HF_FINEMIX_TRACEBACK", "1")
    arguments = [request.param, str(folder), "--base-model", str(base_folder)]
    if request.param == "mix":
        arguments += ["--reserve-ratio", "0.5", "--purify-embeddings", "false"]
        arguments += ["--output-dir", str(folder.parent / "out")]
    return arguments


both_commands = pytest.mark.parametrize("command", ["plan", "mix"], indirect=True)


def run(command, folder, capfd):
    """The exit status of a command, after a look at all that it printed and left."""
    code = main(command)
    out, err = capfd.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in out + err
    for line in (out + err).split("\n"):
        check_line(line)
    if code:
        assert not out
        assert not (folder.parent / "out").exists()
    assert not (folder.parent / "out.partial").exists()
    assert not (folder.parent / RAN).exists()
    return code, err


def check_refused(command, folder, capfd):
    code, err = run(command, folder, capfd)
    assert code == 2
    assert err.startswith("hf-finemix: error:")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "there is no command" not in err


@both_commands
@pytest.mark.parametrize("split", [False, True])
def test_commands_take_the_valid_folder(command, folder, split, capfd):
    if split:
        shard(folder)
    assert run(command, folder, capfd)[0] == 0
    assert (folder.parent / "out").exists() == (command[0] == "mix")


@both_commands
@pytest.mark.parametrize("name", HOSTILE)
def test_commands_refuse_hostile_weights(command, folder, name, capfd):
    attacked(folder, HOSTILE, name)
    check_refused(command, folder, capfd)


@both_commands
@pytest.mark.parametrize("name", HOSTILE_CONFIG)
def test_commands_refuse_hostile_configs(command, folder, name, capfd):
    attacked(folder, HOSTILE_CONFIG, name)
    check_refused(command, folder, capfd)


@both_commands
@pytest.mark.parametrize("name", [*HARMLESS_BUT_ODD, *ODD_CONFIG])
def test_commands_stand_odd_folders(command, folder, name, capfd):
    attacked(folder, HARMLESS_BUT_ODD | ODD_CONFIG, name)
    code, err = run(command, folder, capfd)
    assert "there is no command" not in err
    if code:
        assert err.splitlines()[-1].startswith("hf-finemix: error:")


# ---- Fuzzing --------------------------------------------------------------------------------------------------------

fuzzed = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)  # half surrogates too
NUMBERS = st.one_of(
    st.integers(-2, 20),
    st.sampled_from([1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, (1 << 64) + 8, 10**30]),
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | TEXTS | st.sampled_from([*SIZES, "F128", "F4", "C64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["a", "b.weight", "c", "\x1b[2J", "../x", "a\nb", "", "__metadata__"]) | TEXTS


PLAIN_NAMES = st.text("abc._0", min_size=1, max_size=8)


@st.composite
def layouts(draw, names=NAMES, min_size=0):
    """A valid header as pairs of name and entry, and the size of its data."""
    pairs, end = [], 0
    names = names.filter(lambda name: name != "__metadata__")
    for name in draw(st.lists(names, min_size=min_size, max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(list(SIZES))), draw(st.lists(st.integers(0, 3), max_size=3))
        begin, end = end, end + SIZES[dtype] * int(torch.Size(shape).numel())
        pairs.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}))
    return pairs, end


@st.composite
def headers(draw):
    """A header nearly right, and data of the right size or nearly so."""
    pairs, size = draw(layouts())
    for _ in range(draw(st.integers(0, 2))):
        if not pairs:
            break
        i = draw(st.integers(0, len(pairs) - 1))
        name, info = pairs[i]
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        change = draw(st.sampled_from(["name", "entry", "field", "lost", "number", "dtype", "twice", "away", "added"]))
        if change == "name":
            pairs[i] = (draw(NAMES), info)
        elif change == "entry":
            pairs[i] = (name, draw(JUNK))
        elif change == "twice":
            pairs.append((name, draw(st.sampled_from([info, pairs[-1][1]]))))
        elif change == "away":
            del pairs[i]
        elif change == "added":
            pairs.insert(i, (draw(NAMES), draw(JUNK | st.sampled_from([entry for _, entry in pairs]))))
        elif isinstance(info, dict) and key in info:
            info = {k: list(v) if isinstance(v, list) else v for k, v in info.items()}
            if change == "field":
                info[key] = draw(JUNK)
            elif change == "lost":
                del info[key]
            elif change == "dtype":
                info["dtype"] = draw(st.sampled_from(list(SIZES)))
            elif isinstance(info[key], list) and info[key]:
                info[key][draw(st.integers(0, len(info[key]) - 1))] = draw(NUMBERS | JUNK)
            pairs[i] = (name, info)
    # As text, for a name may be there twice.
    text = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(info)}" for name, info in pairs) + "}"
    size = max(0, size + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1, 8])))
    return text.encode(), bytes(i % 251 for i in range(size))


def written(header, data):
    """A whole safetensors file of a header and data."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


@st.composite
def files(draw):
    """A whole file that was valid before some of its bytes were changed, lost or added."""
    pairs, size = draw(layouts())
    content = bytearray(written(json.dumps(dict(pairs)).encode(), bytes(i % 251 for i in range(size))))
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["byte", "digit", "lost", "added", "cut"]))
        if change == "byte":
            content[i : i + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "digit":
            content[i : i + 1] = draw(st.sampled_from([b"0", b"9", b"-", b".", b"e", b'"', b"[", b"}", b",", b"\\"]))
        elif change == "lost":
            del content[i : i + draw(st.integers(1, 8))]
        elif change == "added":
            content[i:i] = draw(st.binary(max_size=8))
        else:
            del content[i:]
    return bytes(content)


def check_file(content):
    """What the library refuses is refused, and what is read are the library's values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(content)
        ours = load(folder)
        try:
            with safe_open(path, framework="pt") as handle:
                if ours is None:
                    return  # it may be stricter
                assert ours.keys() == set(handle.keys())
                for name, tensor in ours.items():
                    assert list(tensor.shape) == handle.get_slice(name).get_shape()
                    assert raw(tensor) in content
                    assert raw(tensor) == raw(handle.get_tensor(name))
        except (SafetensorError, OSError, ValueError):
            assert ours is None


@settings(fuzzed, max_examples=2000)
@given(headers())
@example((b"{}", b""))
@example((b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"\1"))
@example((b'{"a": {"dtype": "U8", "shape": [0, 9223372036854775808], "data_offsets": [0, 0]}}', b""))
@example((b'{"a": {"dtype": "U8", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}', b""))
def test_fuzzed_headers(header_and_data):
    check_file(written(*header_and_data))


@settings(fuzzed, max_examples=2000)
@given(files())
def test_fuzzed_files(content):
    check_file(content)


@settings(fuzzed, max_examples=300)
@given(layouts(PLAIN_NAMES, min_size=1))
def test_valid_files_of_every_layout_are_read(layout):
    pairs, size = layout
    content = written(json.dumps(dict(pairs)).encode(), bytes(i % 251 for i in range(size)))
    check_file(content)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / WEIGHTS).write_bytes(content)
        tensors = load(folder)
        assert tensors is not None
        assert tensors.keys() == dict(pairs).keys()


KEPT = {"x.safetensors": {"a": torch.arange(3.0)}, "y.safetensors": {"b": torch.ones(2), "c\n\x1b": torch.zeros(1)}}
PLACES = {name: file for file, tensors in KEPT.items() for name in tensors}
SHARD_NAMES = st.sampled_from(
    [
        *KEPT,
        "z.safetensors",
        "../x.safetensors",
        "/x.safetensors",
        "./x.safetensors",
        "sub/x.safetensors",
        "x.safetensors\n",
        "x.safetensors\0",
        "link.safetensors",
        "pipe.safetensors",
        "sub",
        "",
        ".",
        "..",
        INDEX,
        CONFIG,
    ]
)


@st.composite
def indexes(draw):
    """An index as text that is right, or wrong in a place or two."""
    pairs = list(PLACES.items())
    for _ in range(draw(st.integers(0, 2))):
        i = draw(st.integers(0, len(pairs)))
        name = draw(st.sampled_from(list(PLACES)) | TEXTS)
        pairs[i : i + draw(st.integers(0, 1))] = [(name, draw(SHARD_NAMES | TEXTS | JUNK))]
    weight_map = "{" + ", ".join(f"{json.dumps(name)}: {json.dumps(file)}" for name, file in pairs) + "}"
    keys = {"metadata": json.dumps(draw(JUNK)), "weight_map": weight_map}
    if draw(st.integers(0, 9)) == 0:
        keys[draw(st.sampled_from([*keys, "else"]))] = json.dumps(draw(JUNK))
    text = "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in keys.items()) + "}"
    return text if draw(st.integers(0, 9)) else json.dumps(draw(JUNK))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of two shards, and what an index should not lead to."""
    folder = tmp_path_factory.mktemp("outside") / "folder"
    (folder / "sub").mkdir(parents=True)
    for file, tensors in KEPT.items():
        save_file(tensors, folder / file)
    save_file({"a": torch.ones(9)}, folder.parent / "x.safetensors")
    save_file({"a": torch.ones(9)}, folder / "sub" / "x.safetensors")
    (folder / "link.safetensors").symlink_to("../x.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    return folder


@settings(fuzzed, max_examples=2000)
@given(text=indexes())
@example(text=json.dumps({"weight_map": PLACES}))
def test_fuzzed_indexes(shards, text):
    (shards / INDEX).write_text(text)
    tensors = load(shards)
    if tensors is not None:
        assert json.loads(text)["weight_map"].items() <= PLACES.items()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, KEPT[PLACES[name]][name])
