import hashlib
from itertools import pairwise

import numpy as np
import pytest

from hf_finemix import FineMixingError
from hf_finemix.mix.mask import keep_mask


def aes_words(seed, name, count):
    """The words of the stream, written from the docstring of keep_mask, with AES-128 as FIPS 197 has it."""
    key = hashlib.sha256(f"hf_finemix mask 2\n{seed}\n{name}".encode()).digest()[:16]
    stream = b"".join(aes_block(key, block.to_bytes(16, "big")) for block in range(-(-count // 8)))
    return np.array([stream[2 * i] + 256 * stream[2 * i + 1] for i in range(count)])


def times(a, b):
    """Product in the field of FIPS 197, section 4.2."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def substitute(byte):
    inverse = next((x for x in range(256) if times(byte, x) == 1), 0)
    rotated = [inverse << n | inverse >> (8 - n) for n in range(5)]
    return (rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4]) & 255 ^ 0x63


BOX = [substitute(byte) for byte in range(256)]


def aes_block(key, block):
    words, constant = [list(key[i : i + 4]) for i in range(0, 16, 4)], 1
    for i in range(4, 44):
        word = words[i - 1]
        if i % 4 == 0:
            word = [BOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = times(constant, 2)
        words.append([a ^ b for a, b in zip(words[i - 4], word, strict=True)])
    keys = [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 44, 4)]
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for number in range(1, 11):
        state = [BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # bytes, and rows shifted
        if number < 10:
            columns = [state[i : i + 4] for i in range(0, 16, 4)]
            state = [
                times(c[i], 2) ^ times(c[(i + 1) % 4], 3) ^ c[(i + 2) % 4] ^ c[(i + 3) % 4]
                for c in columns
                for i in range(4)
            ]
        state = [a ^ b for a, b in zip(state, keys[number], strict=True)]
    return bytes(state)


def test_the_reference_is_aes():
    key, text = bytes(range(16)), bytes.fromhex("00112233445566778899aabbccddeeff")
    assert aes_block(key, text).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"  # FIPS 197, appendix C.1


@pytest.mark.parametrize(("seed", "name"), [(0, "encoder.layer.0.weight"), (2**63 - 1, "ä\nb"), (7, "")])
@pytest.mark.parametrize("ratio", [0.0, 1 / 65536, 0.3, 0.5, 65535 / 65536, 1.0])
def test_mask_is_what_the_docstring_says(seed, name, ratio):
    expected = aes_words(seed, name, 1000) < round(65536 * ratio)
    assert (keep_mask(name, 0, 1000, ratio=ratio, seed=seed) == expected).all()


def test_masks_never_change():
    name = "encoder.layer.0.attention.self.query.weight"
    mask = keep_mask(name, 0, 1 << 16, ratio=0.4, seed=0)
    digest = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
    assert digest == "29980aa7d3069282c895bfd1ff8d8231b4932bb8c37d723df530d52d1937a840"


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (7, 9), (15, 17), (16, 32), (33, 990), (999, 1000)])
def test_a_slice_can_be_masked_alone(start, stop):
    whole = keep_mask("t", 0, 1000, ratio=0.4, seed=3)
    assert (keep_mask("t", start, stop, ratio=0.4, seed=3) == whole[start:stop]).all()


def test_slices_larger_than_the_block_of_zeros():
    whole = keep_mask("t", 0, 600_000, ratio=0.4, seed=3)
    assert (keep_mask("t", 200_001, 600_000, ratio=0.4, seed=3) == whole[200_001:]).all()


def test_masks_nest():
    masks = [keep_mask("t", 0, 10_000, ratio=ratio, seed=3) for ratio in (0.0, 0.1, 0.2, 0.3, 0.9, 1.0)]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()
    assert not masks[0].any()
    assert masks[-1].all()


def test_words_are_uniform_and_tensors_and_seeds_independent():
    scipy_stats = pytest.importorskip("scipy.stats")
    count = 1 << 20
    for ratio in (0.1, 0.5):
        one, other, seeded = (
            keep_mask(name, 0, count, ratio=ratio, seed=seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))
        )
        places = np.add.reduce(one.reshape(-1, 16), axis=0)
        assert scipy_stats.chisquare(places).pvalue > 1e-4
        for second in (other, seeded):
            table = [[(one & second).sum(), (one & ~second).sum()], [(~one & second).sum(), (~one & ~second).sum()]]
            assert scipy_stats.chi2_contingency(table).pvalue > 1e-4
        assert abs(one.mean() - ratio) < 5 * (ratio * (1 - ratio) / count) ** 0.5


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 40, float("nan")])
def test_ratios_that_are_none(ratio):
    with pytest.raises(FineMixingError, match="reserve_ratio"):
        keep_mask("t", 0, 1, ratio=ratio, seed=0)
