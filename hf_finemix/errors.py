"""The one family of errors that a user of `hf_finemix` can cause."""

__all__ = ["AlignmentError", "DataError", "FineMixingError", "printable"]

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


def printable(text: str) -> str:
    """A text as one line of at most 4,000 signs, all of which can be seen; others are written as escapes."""
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
