"""A dataset as splits, from the Hub or from local files, and the rows that a slice of a split stands for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import DatasetDict, ReadInstruction, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import HFValidationError

from ..errors import DataError
from ..hub.errors import hub_api, hub_error
from ..io.checkpoint import sha256_of_file
from ..io.repo_names import split_revision
from .tables import FORMATS, csv_options, read_table


def load_splits(
    dataset: str, config: str | None = None, revision: str | None = None
) -> tuple[DatasetDict, dict[str, Any]]:
    """
    Read all splits of a dataset on the Hub, of a local folder, or of one local file (which is a train split).

    Returns:
        `tuple[DatasetDict, dict]`: The splits, and for the report `id`, `config`, `sha` (the commit; `None` for local
        data) and, for local data, `sha256` of each file.
    """
    if not dataset:
        raise DataError("no clean data: give dataset (--dataset), a Hub id, a folder or a file.")
    dataset, revision = split_revision(str(dataset), revision)
    path = Path(dataset).expanduser()
    origin: dict[str, Any] = {"id": dataset, "config": config, "sha": None}
    if not path.exists():
        nowhere = f"the dataset {path} is neither a file or folder here nor a Hub id like org/name: check the path."
        if path.suffix.lower() in FORMATS:
            raise DataError(nowhere)
        try:
            if is_offline_mode():  # what is in the cache, of which no commit is known
                return load_dataset(dataset, config, revision=revision), origin
            origin["sha"] = hub_api().dataset_info(dataset, revision=revision).sha
            return load_dataset(dataset, config, revision=origin["sha"]), origin
        except HFValidationError as error:
            raise DataError(nowhere) from error
        except (DatasetsError, ValueError) as error:
            raise DataError(f"the dataset {dataset} cannot be read: {_one_line(error)}") from error
        except Exception as error:
            raise hub_error(error, f"the dataset {dataset}") from error
    if revision is not None:
        raise DataError(f"the dataset {path} is here, of which there is no revision {revision}: leave it away.")
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in files if file.suffix.lower() in FORMATS]
    if not files:
        raise DataError(f"{path} is or holds no file of a known kind: give {', '.join(FORMATS)}, or a Hub id.")
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
    origin["sha256"] = dict(zip(names, map(sha256_of_file, files), strict=True))
    if path.is_file():
        return DatasetDict(train=read_table(path, "the dataset")), origin
    options = csv_options(files)
    try:
        with _name_without_pattern(path) as folder:
            return load_dataset(str(folder), **options), origin
    except Exception as error:  # each reader has its own, StopIteration among them
        raise DataError(f"the dataset {path} cannot be read: {_one_line(error)}") from error


def split_rows(spec: str, splits: DatasetDict) -> list[tuple[str, int]] | None:
    """
    The rows that a split name, or a slice of one like `"train[:10%]"` or `"train[100:200]"`, stands for: the split's
    name and the row's number in it; `None` where there is no such split.
    """
    if spec.split("[")[0] not in splits:
        return None
    try:
        instructions = ReadInstruction.from_spec(spec).to_absolute({name: len(part) for name, part in splits.items()})
    except (ValueError, AssertionError) as error:
        raise DataError(f"split {spec!r} cannot be understood ({error}): write it like train[:10%].") from None
    return [
        (part.splitname, i)
        for part in instructions
        for i in range(part.from_ or 0, len(splits[part.splitname]) if part.to is None else part.to)
    ]


@contextmanager
def _name_without_pattern(folder: Path) -> Iterator[Path]:
    """A folder whose name is a pattern to `datasets` under another name: other folders would be found, or none."""
    folder = folder.resolve()
    if not set("*?[]{}") & set(str(folder)) and "::" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="hf_finemix_") as place:
        for file in folder.rglob("*"):
            if file.is_file():
                link = Path(place) / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        yield Path(place)


def _one_line(error: Exception) -> str:
    cause = error.__cause__ or error
    reason = " ".join(str(cause if str(error).startswith("An error occurred") else error).split())[:400]
    if not reason or "corresponds to no data" in reason:
        reason = "a file or a split without any row"
    return f"{reason.rstrip('.')}."
