import itertools

import numpy as np
import pytest
import torch

from hf_finemix.io.dtypes import ITEMSIZE, MIXABLE, SAFETENSORS_NAMES, average, is_finite, rounded, to_float64, words

KINDS = sorted(MIXABLE)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def numbers(dtype):
    """All kinds of numbers: every exponent and sign, ties, zeros, subnormals, infinities; no NaN."""
    size = ITEMSIZE[dtype]
    if size == 2:
        bits = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    else:
        generator = np.random.default_rng(0)
        bits = generator.integers(0, 2 ** (8 * size), size=1 << 18, dtype=np.uint64).astype(f"u{size}")
        # Halfway between numbers of smaller kinds: the low bits zero but for the topmost of them.
        for low in (13, 16, 29, 42, 45):
            if low < 8 * size - 8:
                some = generator.integers(0, 2 ** (8 * size), size=1 << 16, dtype=np.uint64).astype(f"u{size}")
                bits = np.concatenate([bits, some >> low << low | bits.dtype.type(1 << (low - 1))])
        near_one = np.random.default_rng(1).normal(size=1 << 18) * 10.0 ** np.random.default_rng(2).integers(-9, 6)
        bits = np.concatenate([bits, near_one.astype(f"f{size}").view(f"u{size}")]).view(f"i{size}")
    tensor = torch.from_numpy(bits.copy()).view(getattr(torch, dtype))
    return tensor[~tensor.isnan()].clone()


def as_words(tensor):
    return words(tensor.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."))


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_rounding_is_that_of_torch(source, target):
    tensor = numbers(source)
    expected = tensor.to(getattr(torch, target))
    assert (rounded(as_words(tensor), source, target) == as_words(expected)).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_average_is_that_of_torch_step_by_step(dtype):
    suspect, base = (numbers(dtype)[torch.randperm(len(numbers(dtype)), generator=torch.Generator())] for _ in "ab")
    finite = suspect.isfinite() & base.isfinite()
    suspect, base = suspect[finite], base[finite]
    wide = torch.float64 if dtype == "float64" else torch.float32
    expected = (base.to(wide) + 0.3 * (suspect.to(wide) - base.to(wide))).to(suspect.dtype)
    whole = ~expected.isnan()
    got = average(as_words(suspect), as_words(base), dtype, 0.3)
    assert (got[whole.numpy()] == as_words(expected)[whole.numpy()]).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_finite(dtype):
    tensor = numbers(dtype)
    finite = tensor[tensor.isfinite()]
    assert is_finite(as_words(finite), dtype)
    assert is_finite(as_words(finite[:0]), dtype)
    for bad in ("inf", "-inf", "nan"):
        broken = torch.cat([finite[:7], torch.tensor([float(bad)], dtype=tensor.dtype)])
        assert not is_finite(as_words(broken), dtype)


@pytest.mark.parametrize("dtype", KINDS)
def test_float64_holds_every_number(dtype):
    tensor = numbers(dtype)
    assert (to_float64(as_words(tensor), dtype) == tensor.double().numpy()).all()


def test_names_and_sizes_are_those_of_torch():
    assert set(SAFETENSORS_NAMES.values()) == set(ITEMSIZE)
    assert all(getattr(torch, name).itemsize == size for name, size in ITEMSIZE.items())
