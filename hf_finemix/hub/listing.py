"""What a Hub repo holds at one commit, and what of it is taken: asked before anything is fetched."""

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FineMixingError, printable
from ..io.checkpoint import INDEX_NAME, WEIGHTS_NAME, other_weights
from ..io.pickles import PICKLED_ADAPTER_NAME, PICKLED_INDEX_NAME, PICKLED_NAME
from ..io.safe_json import read_json
from ..repo_contents import _CODE_OR_PICKLE, ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, size_text, small_files_among
from .errors import hub_api

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision


logger = logging.getLogger(__name__)

# The files with which weights begin: a model's own, or else an adapter's.
_SAFETENSORS = (WEIGHTS_NAME, INDEX_NAME, ADAPTER_WEIGHTS_NAME)
_PICKLES = (PICKLED_NAME, PICKLED_INDEX_NAME, PICKLED_ADAPTER_NAME)
_SHARD = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)")


@dataclass(frozen=True)
class RepoContents:
    """
    A repo as the Hub describes it.

    Attributes:
        revision (`ResolvedRevision`): What was asked for, and the commit it stands for.
        sizes (`dict[str, int]`): Every file and its bytes.
        sha256 (`dict[str, str]`): Of the large ones.
        tags (`list[str]`): As the Hub has them; `custom_code` says that the repo brings code.
        scan (`str`): How far the Hub's own scan is: `"finished"`, `"unfinished"` or `"unknown"`.
        flagged (`dict[str, str]`): Files in which the scan found something, and how bad it calls them.
    """

    id: str
    revision: "ResolvedRevision"
    sizes: dict[str, int]
    sha256: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    scan: str = "unknown"
    flagged: dict[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The commit."""
        return self.revision.resolved

    def code_and_pickles(self) -> list[str]:
        """Files that can run when they are loaded, or are code."""
        return sorted(name for name in self.sizes if _CODE_OR_PICKLE.fullmatch(name))

    def describe(self, chosen: Collection[str]) -> str:
        """One line: the commit, what is taken and how large it is, what is left there, what the Hub's scan says."""
        line = f"{self.id} @ {self.sha[:7]}: {len(chosen)} files, {size_text(sum(self.sizes[n] for n in chosen))}"
        if left := [printable(name)[:100] for name in self.code_and_pickles() if name not in chosen]:
            line += f"; not taken, code or pickles: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
        scan = {
            "finished": f"{len(self.flagged)} files flagged" if self.flagged else "nothing found",
            "unfinished": "not finished, so it says nothing",
            "unknown": "none",
        }
        return f"{line}; the Hub's scan: {scan[self.scan]}."


Choice = Callable[[RepoContents], list[str]]  # which of its files to fetch


def inspect_repo(repo: str, revision: str | None = None) -> RepoContents:
    """All that the Hub says of a repo, at the commit that a revision stands for now. Errors are for [`hub_error`]."""
    try:
        resolved = hub_api().resolve_revision(repo, revision=revision)  # everything else is asked of that commit
    except AssertionError as error:  # what the client makes of an answer without a commit
        raise FineMixingError(f"{repo}: the Hub does not say at which commit it is: check HF_ENDPOINT.") from error
    info = hub_api().model_info(repo, revision=resolved.resolved, files_metadata=True, securityStatus=True)
    if info.disabled:
        raise FineMixingError(f"{repo} is disabled on the Hub: it is not to be had, take another model.")
    if not re.fullmatch("[0-9a-f]{40}", resolved.resolved) or info.sha != resolved.resolved:
        raise FineMixingError(f"{repo}: the Hub answered no commit but {str(info.sha)[:100]!r}: try again later.")
    status = info.security_repo_status if isinstance(info.security_repo_status, dict) else {}
    finished = status.get("scansDone")
    issues = [issue for issue in status.get("filesWithIssues") or () if isinstance(issue, dict)]
    return RepoContents(
        id=repo,
        revision=resolved,
        sizes={file.rfilename: file.size or 0 for file in info.siblings or ()},
        sha256={file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs and file.lfs.sha256},
        tags=[str(tag) for tag in info.tags or ()],
        scan="unknown" if finished is None else "finished" if finished is True else "unfinished",
        flagged={str(issue.get("path")): str(issue.get("level")) for issue in issues},
    )


def needed_files(contents: RepoContents, *, allow_pickle: bool = False) -> list[str]:
    """
    Which files to fetch: one set of weights, pickled only where there are no safetensors, and the small files that
    belong to them; an error where the Hub's scan calls one of them unsafe.
    """
    names = contents.sizes
    first = _first(_SAFETENSORS, names) or _pickled(contents, allow_pickle)
    weights = [first, *(_shards(contents, first) if first in (INDEX_NAME, PICKLED_INDEX_NAME) else ())]
    whole = first in (WEIGHTS_NAME, INDEX_NAME)
    chosen = sorted({*weights, *small_files_among(names)} - ({ADAPTER_CONFIG_NAME} if whole else set()))
    for name, level in contents.flagged.items():
        if name not in chosen or level in ("safe", "queued", "unscanned"):
            continue
        if level in ("caution", "error"):
            logger.warning("%s: the Hub's scan has %s down as %r.", contents.id, name, level)
        else:
            raise FineMixingError(
                f"{contents.id}: the Hub's scan calls {name} {level}: do not load it, take another model."
            )
    return chosen


def has_pickles(contents: RepoContents) -> bool:
    """Whether its weights are pickled, and in no other form there."""
    return not _first(_SAFETENSORS, contents.sizes) and _first(_PICKLES, contents.sizes) is not None


def _first(possible: tuple[str, ...], names: Collection[str]) -> str | None:
    """Which of them is there; an adapter's counts beside its configuration alone."""
    adapters = () if ADAPTER_CONFIG_NAME in names else (ADAPTER_WEIGHTS_NAME, PICKLED_ADAPTER_NAME)
    return next((name for name in possible if name in names and name not in adapters), None)


def _pickled(contents: RepoContents, allow: bool) -> str:
    """The file with which pickled weights begin, if they may be taken."""
    first = _first(_PICKLES, contents.sizes)
    if first is None:
        pickles = [name for name in contents.code_and_pickles() if not name.endswith((".py", ".sh"))]
        there = f"only {', '.join(pickles[:3])}" if pickles else "no weights at all"
        what = other_weights(contents.sizes) or f"{there}: ask for a safetensors version"
        raise FineMixingError(f"{contents.id} has no {WEIGHTS_NAME} and no {INDEX_NAME}, {what}.")
    if not allow:
        raise FineMixingError(
            f"{contents.id} has only pickled weights ({first}), which can run code when loaded: ask for a "
            "safetensors version, or give --allow-pickle, which scans them and reads them as data alone."
        )
    return first


def _shards(contents: RepoContents, index: str) -> list[str]:
    """The shards that an index names. Whatever else it names is left to the check of the folder."""
    from huggingface_hub import hf_hub_download

    content = read_json(Path(hf_hub_download(contents.id, index, revision=contents.revision)))
    names = content.get("weight_map") if isinstance(content, dict) else None
    shards = set(map(str, names.values())) if isinstance(names, dict) else set()
    return sorted(name for name in shards if _SHARD.fullmatch(name) and name in contents.sizes)
