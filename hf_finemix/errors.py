"""The one family of errors that a user of `hf_finemix` can cause."""

__all__ = ["AlignmentError", "DataError", "FineMixingError"]


class FineMixingError(ValueError):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do about it."""


class AlignmentError(FineMixingError):
    """Suspect and base do not fit together: other names, other shapes, unrelated or unusable weights."""


class DataError(FineMixingError):
    """The clean data cannot serve: missing columns, labels that do not fit, too few rows, overlapping splits."""
