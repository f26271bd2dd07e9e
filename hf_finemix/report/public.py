"""What of a report may be told in public: what the model was made of, and not where that lay on whose machine."""

import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..io.repo_names import is_repo_id
from .report import CleaningReport

PATHS_OF_CONFIG = ("base_model_name_or_path", "token_frequencies")


def sources(report: CleaningReport) -> list[tuple[str, str]]:
    """What a model was made of that is on the Hub."""
    models = [source.get("id") for source in (report.suspect, report.base) if source.get("revision")]
    models += [(report.benign_floor or {}).get("model")] if (report.benign_floor or {}).get("revision") else []
    data = [report.data.get("id")] if report.data.get("sha") else []
    found = [("model", name) for name in models] + [("dataset", name) for name in data]
    return [(kind, name) for kind, name in found if isinstance(name, str) and is_repo_id(name)]


def last_name(value: Any) -> Any:
    """Of the path of somebody's folder or file the last name; everything else as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        if isinstance(value, str) and (value.startswith("~") or kind(value).is_absolute()):
            return kind(value).name or value
    return value


def without_local_paths(report: CleaningReport) -> CleaningReport:
    """A copy that does not tell where on whose machine models and data were."""
    command = report.command
    with suppress(ValueError):  # no command line
        words = shlex.split(command or "")
        shown = [f"{flag}{equals}{last_name(value)}" for flag, equals, value in (w.rpartition("=") for w in words)]
        command = command if shown == words else shlex.join(shown)
    parts = {name: getattr(report, name) for name in ("suspect", "base", "data", "mixing", "benign_floor")}
    keys = ("id", "model", *PATHS_OF_CONFIG)
    return replace(
        report,
        command=command,
        **{
            name: part and {key: last_name(value) if key in keys else value for key, value in part.items()}
            for name, part in parts.items()
        },
    )
