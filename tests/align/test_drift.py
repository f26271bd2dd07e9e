import math

import pytest
import torch

from hf_finemix import AlignmentError
from hf_finemix.align.drift import TensorDrift, check_related, drift_by_layer


def drift(suspect, base):
    s, b = torch.tensor(suspect), torch.tensor(base)
    return TensorDrift(*(float(x.sum()) for x in ((s - b) ** 2, s**2, b**2, s * b)))


def test_relative_and_cosine():
    assert drift([3.0, 4.0], [3.0, 0.0]).relative == pytest.approx(4 / 3)
    assert drift([3.0, 4.0], [3.0, 0.0]).cosine == pytest.approx(0.6)
    assert drift([0.0], [0.0]).relative == 0
    assert drift([0.0], [0.0]).cosine == 1
    assert drift([1.0], [0.0]).relative == math.inf
    assert drift([1.0], [0.0]).cosine == 0


def test_layers_are_summed():
    names = {
        "encoder.layer.0.a.weight": drift([1.0, 1.0], [1.0, 0.0]),
        "encoder.layer.0.b.1.weight": drift([0.0], [1.0]),
        "encoder.layer.10.a.weight": drift([2.0], [2.0]),
        "embeddings.word_embeddings.weight": drift([0.5], [1.0]),
        "norm": drift([2.0], [1.0]),
    }
    assert drift_by_layer(names) == pytest.approx(
        {"encoder.layer.0": 1.0, "encoder.layer.10": 0.0, "embeddings": 0.5, "norm": 1.0}
    )


def test_one_strange_matrix_does_not_make_the_base_wrong():
    near, far = drift([1.0, 0.1], [1.0, 0.0]), drift([0.0, 9.0], [1.0, 0.0])
    check_related({"a": near, "b": near, "c": far}, {"a", "b", "c", "not there"})
    with pytest.raises(AlignmentError, match="unrelated"):
        check_related({"a": near, "b": far, "c": far}, {"a", "b", "c"})
    check_related({"a": far}, set())  # vectors alone tell nothing
