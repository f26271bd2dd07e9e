"""The mask: which scalar weights of a tensor are the suspect's own."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ..errors import FineMixingError

_ZEROS = memoryview(bytes(1 << 19))


def keep_mask(name: str, start: int, stop: int, *, ratio: float, seed: int) -> np.ndarray:
    r"""
    The mask m of elements `start` to `stop` of a tensor: `True` keeps the suspect's weight.

    Element i of the flattened tensor is kept iff u_i < round(65536·ρ), where u_i is the 16-bit word number i
    (little-endian) of a stream that depends on `seed` and `name` alone. So u_i depends on nothing but `seed`, `name`
    and i, and masks of one tensor nest: what a ratio keeps, every larger ratio keeps too.

    The stream (version 2 of the mask) is the keystream of AES-128 in counter mode (NIST SP 800-38A; what
    `openssl enc -aes-128-ctr` makes of zeros) with an initial counter of 0 and, as key, the first 16 bytes of SHA-256
    of the UTF-8 text `"hf_finemix mask 2\n{seed}\n{name}"`. A block of 16 bytes is 8 elements: element i is word
    i mod 8 of the encryption of the number i // 8 as 16 big-endian bytes. Processors have instructions for it, so that
    the mask costs less than reading the weights.

    Elements are counted in row-major order; `name` is the canonical one, ρ is honoured to 1/65536.
    """
    if not 0 <= ratio <= 1:
        raise FineMixingError(f"reserve_ratio is {ratio!r}: give a number in [0, 1].")
    threshold = round(ratio * 65536)
    if threshold in (0, 65536):
        return np.full(stop - start, threshold == 65536)
    key = hashlib.sha256(f"hf_finemix mask 2\n{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()[:16]
    first = start // 8
    size = 2 * stop - 16 * first
    cipher = Cipher(algorithms.AES(key), modes.CTR(first.to_bytes(16, "big"))).encryptor()
    stream = cipher.update(_ZEROS[:size] if size <= len(_ZEROS) else bytes(size))
    return np.frombuffer(stream, dtype="<u2")[start - 8 * first :] < np.uint16(threshold)
