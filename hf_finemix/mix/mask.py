"""The mask: which scalar weights of a tensor are the suspect's own."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import FineMixingError

__all__ = ["keep_mask"]

_ZEROS = memoryview(bytes(1 << 19))


def keep_mask(name: str, start: int, stop: int, *, ratio: float, seed: int, version: int = 2) -> np.ndarray:
    r"""
    The mask m of elements `start` to `stop` of a tensor: `True` keeps the suspect's weight.

    Element i of the flattened tensor is kept iff u_i < round(65536·ρ), where u_i is the 16-bit word number i
    (little-endian) of a stream that depends on `seed` and `name` alone. So u_i depends on nothing but `seed`, `name`
    and i, and masks of one tensor nest: what a ratio keeps, every larger ratio keeps too.

    Version 2. The stream is the keystream of AES-128 in counter mode (NIST SP 800-38A; what `openssl enc -aes-128-ctr`
    makes of zeros) with an initial counter of 0 and, as key, the first 16 bytes of SHA-256 of the UTF-8 text
    `"hf_finemix mask 2\n{seed}\n{name}"`. A block of 16 bytes is 8 elements: element i is word i mod 8 of the
    encryption of the number i // 8 as 16 big-endian bytes. Processors have instructions for it, so that the mask costs
    less than reading the weights.

    Version 1. The stream is that of the counter-based generator Philox4x64-10 (Salmon et al., SC'11) under the 128-bit
    key that is the first 16 bytes, read as two little-endian 64-bit words, of SHA-256 of
    `"hf_finemix mask 1\n{seed}\n{name}"`. Block b = 0, 1, … of the stream is the generator's output for the counter
    (b + 1, 0, 0, 0): four 64-bit words, each giving four 16-bit words from its least significant bits up.

    Args:
        name (`str`): Canonical name of the tensor.
        start (`int`): First element, counted in row-major order, at least 0.
        stop (`int`): One past the last element.
        ratio (`float`): Reserve ratio ρ in [0, 1], honoured to 1/65536.
        seed (`int`): Mixing seed in [0, 2⁶³).
        version (`int`, *optional*, defaults to 2): Mask version.

    Returns:
        `np.ndarray`: Booleans, shape `[stop - start]`.
    """
    if version not in _STREAMS:
        raise ValueError(f"mask_version {version} is not known")
    if not 0 <= ratio <= 1:
        raise FineMixingError(f"reserve_ratio is {ratio!r}: give a number in [0, 1].")
    threshold = round(ratio * 65536)
    if threshold in (0, 65536):
        return np.full(stop - start, threshold == 65536)
    text = f"hf_finemix mask {version}\n{seed}\n{name}"
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
    return _STREAMS[version](key, start, stop) < np.uint16(threshold)


def _aes(key: bytes, start: int, stop: int) -> np.ndarray:
    first = start // 8
    size = 2 * stop - 16 * first
    cipher = Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(16, "big"))).encryptor()
    stream = cipher.update(_ZEROS[:size] if size <= len(_ZEROS) else bytes(size))
    return np.frombuffer(stream, dtype="<u2")[start - 8 * first :]


def _philox(key: bytes, start: int, stop: int) -> np.ndarray:
    first, last = start // 16, -(-stop // 16)
    # numpy's Philox steps its counter before each block, hence block b at counter b + 1.
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8"), counter=first))
    # Full-range 64-bit integers are the generator's raw output, and faster to draw than `random_raw`.
    blocks = generator.integers(0, 2**64, size=4 * (last - first), dtype=np.uint64)
    return blocks.astype("<u8", copy=False).view("<u2")[start - 16 * first : stop - 16 * first]


_STREAMS = {1: _philox, 2: _aes}
