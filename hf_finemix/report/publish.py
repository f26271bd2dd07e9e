"""A cleaned folder in, one commit or pull request on the Hub out: only the files of a cleaned model, and no secret."""

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ..config import CONFIG_NAME, FineMixingConfig
from ..errors import FineMixingError
from ..hub.commit import Destination, refuse_private, refuse_public, refuse_secrets
from ..hub.errors import hub_api, hub_error
from ..io.checkpoint import INDEX_NAME, sha256_of_file
from ..io.folder import is_adapter, small_files, weights_in
from ..io.safe_json import check_inside
from ..mix.mask_file import MASKS_NAME
from ..repo_contents import ADAPTER_CONFIG_NAME, REPORT_NAME, size_text
from .card import card_section, merge_card, render_card, text_of_others
from .public import PATHS_OF_CONFIG, last_name, sources, without_local_paths
from .report import CleaningReport

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelInfo
    from huggingface_hub.hf_api import RepoSibling


logger = logging.getLogger(__name__)

# Weights that a reader might load in place of ours, once these are there.
_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model|tf_model|flax_model|adapter_model)[\w.-]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?"
    r"|adapter_config\.json"
)
MAX_README_BYTES = 5_000_000
_ALSO_PUBLISHED = {"chat_template.jinja", MASKS_NAME}


@dataclass(frozen=True)
class PublishedModel:
    """
    What was published.

    Attributes:
        repo_id (`str`): Where.
        url (`str`): Of the commit, or of the pull request.
        commit_info (`CommitInfo`): As the Hub's client has it.
        files (`dict[str, tuple[int, str]]`): Path, bytes and SHA-256 of each file of the commit.
        removed (`list[str]`): Other weights that were taken away, so that nobody loads them in place of these.
        changed (`bool`): Whether anything there differed.
    """

    repo_id: str
    url: str
    commit_info: "CommitInfo"
    files: dict[str, tuple[int, str]]
    removed: list[str]
    changed: bool


def push_cleaned(
    folder: str | Path,
    repo_id: str,
    *,
    create_pr: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> PublishedModel:
    """
    Publish a cleaned folder in one commit: weights, configuration, tokenizer, card, report and figures, nothing else.

    A README that is there keeps its text; our section and our YAML keys are put into it. Until the commit the repo
    stays as it was; what was uploaded by then is not uploaded again. Of local folders in the report, and in the
    command that it states, only the last name goes up.

    Args:
        folder (`str` or `Path`): What `clean` wrote.
        repo_id (`str`): `name` or `org/name`, made where it is missing.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request there, the report as its description.
        private (`bool`, *optional*): Whether the repo is private, where it is made anew; with `True` a public one that
            is there already is refused, and without `False` a public one for what is made of private models or data.
        revision (`str`, *optional*): The branch; the main one by default. Made where it is missing.
        commit_message (`str`, *optional*): First line of the commit, title of the pull request.
        token (`str`, *optional*): In place of the one that is logged in.

    Raises:
        [`FineMixingError`]: The folder is no cleaned model or not as its report says, a secret is in one of its files,
            or the Hub does not take it.
    """
    folder, destination = Path(folder), Destination(repo_id, create_pr, private, revision, token)
    push = _Push(folder, destination)
    whole = f"{folder} is whole: `{destination.command(folder)}` publishes it"
    try:
        push.gather()
        return push.run(commit_message or "Cleaned with hf_finemix")
    except KeyboardInterrupt:
        done = "it may be published already, look there" if push.sent else "nothing was published"
        raise KeyboardInterrupt(f"{done}; {whole}") from None
    except Exception as error:
        told = hub_error(error, f"the repo {repo_id}", writing=True)
        raise FineMixingError(f"{told} {push.aftermath(error)} {whole}.") from error


def publishable_files(folder: Path, report: CleaningReport) -> dict[str, Path]:
    """
    The files of a folder that are published, by their path in the repo: an allow list, whatever else lies there.

    Raises:
        [`FineMixingError`]: A file is missing, or is a link to elsewhere; the weights are not those of the report.
    """
    if not report.training:
        raise FineMixingError(
            f"{folder} holds a mix that was not fine-tuned or measured: clean the suspect to publish."
        )
    with weights_in(folder) as checkpoint:
        weights = {file.name: file for file in checkpoint.files}
    for name, file in weights.items():
        if (report.weights or {}).get(name) != sha256_of_file(file):
            raise FineMixingError(f"{file} is not the file that the report in {folder} is about: clean it anew.")
    names = (
        (set(small_files(folder)) - (set() if is_adapter(folder) else {ADAPTER_CONFIG_NAME}))
        | _ALSO_PUBLISHED
        | ({INDEX_NAME} if INDEX_NAME not in weights else set())
    )
    files = weights | {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    if len(weights) == 1:
        files.pop(INDEX_NAME, None)
    for needed in ("config.json", CONFIG_NAME, REPORT_NAME):
        if needed not in files:
            raise FineMixingError(f"{folder / needed} is missing: give the folder that clean wrote.")
    for figure in report.figures:
        if not re.fullmatch(r"figures/[\w-]+\.png", str(figure)) or not (folder / figure).is_file():
            raise FineMixingError(f"{folder} lacks {str(figure)[:100]!r}, a figure of its report: clean it anew.")
        files[figure] = folder / figure
    for file in files.values():
        check_inside(file, folder)
    return files


class _Push:
    """One commit to one place."""

    def __init__(self, folder: Path, destination: Destination):
        self.folder, self.destination = folder, destination
        self.repo_id, self.parent, self.sent = destination.repo_id, None, False
        self.api = hub_api(destination.token)

    def gather(self) -> None:
        """The report and the files, checked, as they are to be published."""
        report = CleaningReport.load(self.folder)
        files = publishable_files(self.folder, report)
        refuse_secrets(files, self.destination.token)
        self.files: dict[str, Path | bytes] = dict(files)
        self.report = without_local_paths(report)
        if self.report != report:
            self.files[REPORT_NAME] = self.report.to_json().encode()
        config = FineMixingConfig.from_pretrained(self.folder)
        shown = replace(config, **{name: last_name(getattr(config, name)) for name in PATHS_OF_CONFIG})
        if shown != config:
            self.files[CONFIG_NAME] = shown.to_json().encode()

    def run(self, message: str) -> PublishedModel:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        to = self.destination
        refuse_private(self.api, to, sources(self.report))
        if not to.create_pr and not (to.revision or "").startswith("refs/pr/"):
            self.repo_id = self.api.create_repo(self.repo_id, private=to.private, exist_ok=True).repo_id
            if to.revision:
                self.api.create_branch(self.repo_id, branch=to.revision, exist_ok=True)
        there = self.look()
        refuse_public(to, bool(there.private))
        if there.sha is None:
            raise FineMixingError(f"{self.repo_id}: the Hub does not say at which commit it is: check HF_ENDPOINT.")
        self.parent = there.sha
        sizes = {file.rfilename: file.size or 0 for file in there.siblings or ()}
        card = self.card(sizes.get("README.md"))
        refuse_secrets({"README.md": card}, to.token)  # it may hold a text that stands there
        self.files["README.md"] = card
        removed = sorted(name for name in sizes.keys() - self.files.keys() if _OTHER_WEIGHTS.fullmatch(name))
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in self.files.items()
        ]
        operations += [CommitOperationDelete(name) for name in removed]
        self.sent = True
        try:
            commit = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                commit_description=card_section(self.report, figures=False) if to.create_pr else None,
                revision=to.revision,
                create_pr=to.create_pr,
                parent_commit=self.parent,
            )
        except Exception:
            if (commit := self.commit_there(message)) is None:
                raise
            logger.warning("The Hub's answer was lost or not understood, but the commit is there.")
        changed = commit.pr_url is not None if to.create_pr else commit.oid not in (None, self.parent)
        if not changed and (lacking := self.lacking(self.look())):
            where = f"the branch {to.revision}" if to.revision else "it"
            raise FineMixingError(
                f"{self.repo_id}: the Hub made no commit, but {where} lacks {lacking[0]}: publish to another branch."
            )
        published = {name: _size_and_sha256(content) for name, content in self.files.items()}
        url = urljoin(self.api.endpoint, commit.pr_url or commit.commit_url)
        if changed:
            total = size_text(sum(size for size, _ in published.values()))
            logger.info("Published %d files, %s: %s", len(published), total, url)
        else:
            logger.info("%s has all of it already: nothing to publish.", self.repo_id)
        if changed and removed:
            logger.info("Other weights were taken away there: %s.", ", ".join(removed))
        return PublishedModel(self.repo_id, url, commit, published, removed, changed)

    def look(self) -> "ModelInfo":
        """What the Hub says of the branch."""
        return self.api.model_info(self.repo_id, revision=self.destination.revision, files_metadata=True)

    def lacking(self, there: "ModelInfo") -> list[str]:
        """Which of the files are not there, or are other ones."""
        found = {file.rfilename: file for file in there.siblings or ()}
        return [
            name for name, content in self.files.items() if name not in found or not _is_that(found[name], content)
        ]

    def commit_there(self, message: str) -> "CommitInfo | None":
        """After an error: the commit all the same, where it can be seen by its files. Asked on a new connection."""
        from huggingface_hub import CommitInfo, close_session

        if self.destination.create_pr:
            return None
        with suppress(Exception):
            close_session()
            self.api = hub_api(self.destination.token)
            there = self.look()
            if there.sha not in (None, self.parent) and not self.lacking(there):
                return CommitInfo(f"{self.api.endpoint}/{self.repo_id}/commit/{there.sha}", message, "", there.sha)
        return None

    def card(self, size: int | None) -> bytes:
        """The card to publish: what stands there, or else in the folder, with our section in it."""
        local, where = self.folder / "README.md", f"README.md of {self.repo_id}"
        own = local.read_text(encoding="utf-8", errors="replace") if local.is_file() else ""
        text = own
        if size is not None:
            if size > MAX_README_BYTES:
                raise FineMixingError(f"{where} is far too long for a card: shorten it, or publish to another repo.")
            path = self.api.hf_hub_download(self.repo_id, "README.md", revision=self.parent)
            text = Path(path).read_text(encoding="utf-8", errors="replace")
            mine, theirs = text_of_others(own), text_of_others(text)
            if mine and theirs and mine != theirs:
                logger.warning("%s has a text of its own, which stays: that of %s is not published.", where, local)
            elif mine:
                text = own
        return merge_card(text, render_card(self.report), where=where).encode()

    def aftermath(self, error: Exception) -> str:
        """What can be said of the repo after an error: an answer may be lost while the commit is made."""
        from huggingface_hub.errors import HfHubHTTPError

        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if not self.sent or (status is not None and (status < 500 or status == 501)):
            return "Nothing was published, and"
        if self.destination.create_pr:
            return "Whether a pull request was opened is not known: look there before you try again."
        with suppress(Exception):
            head = self.api.model_info(self.repo_id, revision=self.destination.revision).sha
            if head is not None:
                return "Nothing was published, and" if head == self.parent else f"But there is a new commit, {head}."
        return "Whether it was published is not known: look there, or publish it again, which does no harm."


def _size_and_sha256(content: Path | bytes) -> tuple[int, str]:
    if isinstance(content, bytes):
        return len(content), hashlib.sha256(content).hexdigest()
    return content.stat().st_size, sha256_of_file(content)


def _is_that(file: "RepoSibling", content: Path | bytes) -> bool:
    """Whether a file on the Hub has this content, by what the Hub lists of it."""
    size, sha256 = _size_and_sha256(content)
    if file.lfs:
        return file.lfs.sha256 == sha256
    if file.blob_id is None:
        return file.size in (None, size)
    content = content if isinstance(content, bytes) else content.read_bytes()
    return file.blob_id == hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
