"""The one family of errors that a user of `hf_finemix` can cause."""

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 4000


class FineMixingError(ValueError):
    """
    Something the user can mend. The message is one line: what is wrong, where, and what to do about it.

    It may quote names from a stranger's file: they are made [`printable`].
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class AlignmentError(FineMixingError):
    """Suspect and base do not fit together: other names, other shapes, unrelated or unusable weights."""


class DataError(FineMixingError):
    """The clean data cannot serve: missing columns, labels that do not fit, too few rows, overlapping splits."""


def said(error: Exception, most: int = 300) -> str:
    """What another library says of an error, in one line of at most so many signs; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


@contextmanager
def told_as(what: str, advice: str | None = None, kinds: type[Exception] | tuple = Exception) -> Iterator[None]:
    """
    A block whose errors, if of these kinds, are told as one of ours: `"x cannot be read"`, what the library says, and
    what to do about it (`"get it again"`). What is ours already stays as it is.
    """
    try:
        yield
    except FineMixingError:
        raise
    except kinds as error:
        told = f"{what} ({said(error)}): {advice}." if advice else f"{what}: {said(error)}"
        raise FineMixingError(told) from error


def printable(text: str) -> str:
    """A text as one line of at most 4,000 signs, all of which can be seen; others are written as escapes."""
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
