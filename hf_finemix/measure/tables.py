"""One local table (CSV, JSON or Parquet) as rows: the same rules for clean data and for triggered texts."""

import glob
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from ..errors import DataError

# Ending → the reader of `Dataset`, and what such a file must look like.
FORMATS = {
    ".csv": (Dataset.from_csv, "a CSV table with a header line and at least one row"),
    ".json": (Dataset.from_json, "JSON with one object a line, or one list of objects"),
    ".jsonl": (Dataset.from_json, "JSON with one object a line"),
    ".parquet": (Dataset.from_parquet, "a Parquet table with at least one row"),
}


def read_table(path: Path, what: str, **options: Any) -> Dataset:
    """
    Read one local file with an ending of [`FORMATS`], called `what` in messages, without a word to any server:
    `load_dataset` would report the load to one. The options are those of the reader of `datasets`.
    """
    reader, expected = FORMATS[path.suffix.lower()]
    options |= csv_options([path])
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs the failure as well: once is enough
    try:
        return reader(glob.escape(str(path.resolve())), **options)  # a pattern is expected, and a file name is none
    except Exception as error:  # each reader has its own: pandas, pyarrow, ujson, and datasets around them
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or "a file without any row").splitlines()[0]
        raise DataError(f"{what} {path} cannot be read: {reason.rstrip('.')}; it must be {expected}.") from None
    finally:
        datasets.logging.set_verbosity(verbosity)


def read_triggered(path: str | os.PathLike, text_columns: Sequence[str] = ()) -> Dataset:
    """
    Read texts that already hold their trigger, such as the paraphrases of HiddenKiller (arXiv:2105.12400).

    The labels are returned as the file has them. Where they are the target's, as in the test files of HiddenKiller,
    the share of rows predicted as their label is the attack success rate.

    The rows are held in memory, and no copy stays in the cache of `datasets`. Each of them must have a text in all
    `text_columns`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        problem = "is a folder: name one file in it" if path.is_dir() else "does not exist: check the path"
        raise DataError(f"the triggered data {str(path)!r} {problem}")
    if path.suffix.lower() not in FORMATS:
        endings = ", ".join(FORMATS)
        raise DataError(f"cannot tell the format of the triggered data {str(path)!r}: its ending must be {endings}")
    with tempfile.TemporaryDirectory(prefix="hf_finemix_") as cache_dir:
        rows = read_table(path, "the triggered data", cache_dir=cache_dir, keep_in_memory=True)
    if missing := [column for column in text_columns if column not in rows.column_names]:
        there = ", ".join(rows.column_names)
        raise DataError(f"{path} has no column {missing[0]!r}: there are {there}; name its columns like the data's.")
    if not all(isinstance(text, str) for column in text_columns for text in rows[column]):
        raise DataError(f"{path} has a row without text in {' or '.join(text_columns)}: fill or remove it.")
    return rows


def csv_options(files: Sequence[Path]) -> dict[str, Any]:
    """
    For the readers of `datasets`: in CSV only an empty cell is a missing value. Nothing where other kinds are among
    the files. CSV that is not in UTF-8 is refused.
    """
    tables = [path for path in files if path.suffix.lower() == ".csv"]
    for path in tables:
        try:
            with open(path, encoding="utf-8") as file:
                while part := file.read(1 << 20):
                    if "\0" in part:
                        raise UnicodeError
        except OSError:
            continue  # whoever reads it says so
        except UnicodeError:
            with open(path, "rb") as file:
                kind = "UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "Latin-1, Windows-1252 or UTF-16"
            raise DataError(f"{path} must be in UTF-8, and seems to be in {kind}: save it as UTF-8.") from None
    # pandas reads the words "null", "NA", "None" … as missing values: here they are somebody's text.
    return {"keep_default_na": False, "na_values": [""]} if tables and len(tables) == len(files) else {}
