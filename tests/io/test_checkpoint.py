import pytest
import torch
from helpers.checkpoints import write_shards
from safetensors.torch import save_file

from hf_finemix import Checkpoint, FineMixingError
from hf_finemix.io.checkpoint import INDEX_NAME, WEIGHTS_NAME, TensorInfo, row_chunks, sha256_of_file

TENSORS = {
    "a.weight": torch.arange(12.0).view(4, 3),
    "b": torch.tensor([1, 2], dtype=torch.int64),
    "scale": torch.tensor(3.0, dtype=torch.bfloat16),
}


@pytest.fixture(params=["single", "sharded"])
def folder(request, tmp_path):
    if request.param == "single":
        save_file(TENSORS, tmp_path / WEIGHTS_NAME)
    else:
        names = list(TENSORS)
        write_shards(
            tmp_path,
            {"x-1.safetensors": {names[0]: TENSORS[names[0]]}, "x-2.safetensors": {n: TENSORS[n] for n in names[1:]}},
        )
    return tmp_path


def test_names_shapes_dtypes_and_values(folder):
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tensors == {n: TensorInfo.of(t) for n, t in TENSORS.items()}
        for name, tensor in TENSORS.items():
            assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(checkpoint.read("a.weight", 1, 3), TENSORS["a.weight"][1:3])
        assert torch.equal(checkpoint.read("scale", 0, 1), TENSORS["scale"].view(1))


def test_reading_after_close_opens_again(folder):
    checkpoint = Checkpoint(folder)
    checkpoint.close()
    assert torch.equal(checkpoint.read("b"), TENSORS["b"])
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, None, "no model.safetensors"),
        ("pytorch_model.bin", b"x", "pickled"),
        (WEIGHTS_NAME, b"\xff" * 100, "not a readable safetensors"),
        (WEIGHTS_NAME, b"", "not a readable safetensors"),
        (INDEX_NAME, b"{", "cannot be read as JSON"),
        (INDEX_NAME, b'{"weight_map": [1]}', "not an index"),
        (INDEX_NAME, b'{"weight_map": {"a": "../x.safetensors"}}', "of that folder"),
        (INDEX_NAME, b'{"weight_map": {"a": "/etc/x.safetensors"}}', "of that folder"),
        (INDEX_NAME, b'{"weight_map": {"a": "x.bin"}}', "of that folder"),
        (INDEX_NAME, b'{"weight_map": {"a": 1}}', "of that folder"),
        (INDEX_NAME, b'{"weight_map": {"a": "x.safetensors"}}', "missing"),
    ],
)
def test_unusable_folders(tmp_path, name, content, said):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FineMixingError, match=said) as error:
        Checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_not_a_folder(tmp_path):
    with pytest.raises(FineMixingError, match="not a folder"):
        Checkpoint(tmp_path / "nothing")


def test_tensor_in_two_shards(tmp_path):
    write_shards(tmp_path, {"1.safetensors": TENSORS, "2.safetensors": {"b": TENSORS["b"]}})
    with pytest.raises(FineMixingError, match="'b' is both in"):
        Checkpoint(tmp_path)


def test_tensor_that_the_index_promises_in_vain(tmp_path):
    write_shards(tmp_path, {"1.safetensors": {"b": TENSORS["b"]}}, index={"b": "1.safetensors", "c": "1.safetensors"})
    with pytest.raises(FineMixingError, match="says that 'c' is in"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("shape", [(7, 3), (10,), (1, 100), (3, 0), (0, 4)])
@pytest.mark.parametrize("elements", [1, 6, 1000])
def test_row_chunks_cover_each_row_once(shape, elements):
    row = torch.Size(shape[1:]).numel()
    chunks = list(row_chunks(shape, elements))
    assert [i for first, last, _ in chunks for i in range(first, last)] == list(range(shape[0]))
    assert all(start == first * row for first, _, start in chunks)
    assert all((last - first) * row <= max(elements, row) for first, last, _ in chunks)


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
