import pytest

from hf_finemix.errors import AlignmentError, FineMixingError, said, told_as


def test_what_another_library_says_is_one_short_line():
    assert said(ValueError("a\n  b")) == "a b"
    assert said(KeyError()) == "KeyError"
    assert said(ValueError("x" * 500), 10) == "x" * 10


def test_a_block_tells_the_errors_of_others_as_ours():
    with pytest.raises(FineMixingError) as error, told_as("x cannot be read", "get it again", (OSError, KeyError)):
        raise OSError("no\nluck")
    assert str(error.value) == "x cannot be read (no luck): get it again."
    assert isinstance(error.value.__cause__, OSError)
    with pytest.raises(FineMixingError, match=r"^x: no luck$"), told_as("x"):
        raise RuntimeError("no luck")
    with pytest.raises(AlignmentError, match=r"^ours$"), told_as("x"):
        raise AlignmentError("ours")
    with pytest.raises(ZeroDivisionError), told_as("x", "y", OSError):
        raise ZeroDivisionError
