"""Kinds of number as they lie in a file: names, sizes, and rounding from one to another without torch."""

import numpy as np

# The names of safetensors, and those of torch and numpy.
SAFETENSORS_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
SAFETENSORS_NAMES |= {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32"}
SAFETENSORS_NAMES |= {"U16": "uint16", "U8": "uint8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
ITEMSIZE = {"float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2}
ITEMSIZE |= {"int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}

# Not integers, and not the 8-bit floats of quantized models, whose values mean nothing without their scales.
MIXABLE = {"float64", "float32", "float16", "bfloat16"}

_WORD = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_FLOAT = {"float64": np.dtype("<f8"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
# The bits of +inf: without their sign, larger ones are NaN and all finite numbers are smaller.
_INFINITY = {"float64": 0x7FF << 52, "float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


def words(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes of floating-point numbers as unsigned integers of their size, which select and compare bit by bit."""
    return raw.view(_WORD[ITEMSIZE[dtype]])


def is_finite(numbers: np.ndarray, dtype: str) -> bool:
    """Whether none of the numbers (from [`words`]) is NaN or infinite."""
    if not numbers.size:
        return True
    # Two passes and no copy: the positive ones are largest as signed integers, the negative ones as unsigned.
    negative = 1 << (8 * numbers.itemsize - 1)
    signed = numbers.view(numbers.dtype.str.replace("u", "i"))
    return int(signed.max()) < _INFINITY[dtype] and int(numbers.max()) < negative + _INFINITY[dtype]


def rounded(numbers: np.ndarray, source: str, target: str) -> np.ndarray:
    """
    Round words of one [`MIXABLE`] kind to another, to nearest and ties to even, as `torch.Tensor.to` does, by way of
    float32; infinite where a number is too large for it.
    """
    if source == target:
        return numbers
    with np.errstate(over="ignore"):
        return _from_float(_to_float(numbers, source).astype(np.float32, copy=False), target)


def average(suspect: np.ndarray, base: np.ndarray, dtype: str, ratio: float) -> np.ndarray:
    """b + ρ·(s - b) of words, each step rounded to float32 (float64 for that kind), the result to `dtype`."""
    s, b = _to_float(suspect, dtype), _to_float(base, dtype)
    with np.errstate(over="ignore"):
        return _from_float(b + ratio * (s - b), dtype)


def to_float64(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers behind the words, exactly."""
    return _to_float(numbers, dtype).astype(np.float64)


def _to_float(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """As float32, which holds every number of a smaller kind; float64 stays as it is."""
    if dtype == "bfloat16":
        return (numbers.astype("<u4") << np.uint32(16)).view("<f4")
    return numbers.view(_FLOAT[dtype]).astype("<f8" if dtype == "float64" else "<f4", copy=False)


def _from_float(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return np.ascontiguousarray(values.astype(_FLOAT[dtype], copy=False)).view(_WORD[ITEMSIZE[dtype]])
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    half = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype("<u2")
    nan = np.isnan(values)
    if nan.any():  # whose bits the sum may carry over into those of a number
        half[nan] = 0x7FC0
    return half
