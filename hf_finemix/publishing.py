"""A cleaned folder in, one commit or pull request on the Hub out: only the files of a cleaned model, and no secret."""

import hashlib
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import INDEX_NAME, check_inside, sha256_of_file
from .config import CONFIG_NAME
from .errors import FineMixingError
from .hub import is_repo_id
from .hub_errors import hub_api, hub_error
from .mask_file import MASKS_NAME
from .model_card import card_section, merge_card, render_card, text_of_others
from .repo_contents import ADAPTER_CONFIG_NAME, is_adapter, size_text, small_files, weights_in
from .report import REPORT_NAME, CleaningReport
from .secret_scan import holds_secret, known_secrets

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

__all__ = ["Destination", "PublishedModel", "check_destination", "publishable_files", "push_cleaned"]

logger = logging.getLogger(__name__)

# Weights that a reader might load in place of ours, once these are there.
_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model|tf_model|flax_model|adapter_model)[\w.-]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?"
)
MAX_README_BYTES = 5_000_000
_ALSO_PUBLISHED = {"chat_template.jinja", MASKS_NAME}


@dataclass(frozen=True)
class Destination:
    """
    Where a cleaned model goes. A [`FineMixingError`] for what is no Hub id.

    Attributes:
        repo_id (`str`): `name` or `org/name`.
        create_pr (`bool`): Open a pull request there in place of writing to it.
        private (`bool`, *optional*): Whether the repo is private, where it is made anew.
        revision (`str`, *optional*): The branch; the main one by default. Made where it is missing.
        token (`str`, *optional*): In place of the one that is logged in.
    """

    repo_id: str
    create_pr: bool = False
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        if not is_repo_id(self.repo_id):
            raise FineMixingError(f"{self.repo_id!r} is no Hub id like org/name: give one to publish to.")


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
    stays as it was; what was uploaded by then is not uploaded again.

    Args:
        folder (`str` or `Path`): What `clean` wrote.
        repo_id (`str`): `name` or `org/name`, made where it is missing.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request there, the report as its description.
        private (`bool`, *optional*): Whether the repo is private, where it is made anew; with `True` a public one that
            is there already is refused.
        revision (`str`, *optional*): The branch; the main one by default. Made where it is missing.
        commit_message (`str`, *optional*): First line of the commit, title of the pull request.
        token (`str`, *optional*): In place of the one that is logged in.

    Raises:
        [`FineMixingError`]: The folder is no cleaned model or not as its report says, a secret is in one of its files,
            or the Hub does not take it.
    """
    folder, destination = Path(folder), Destination(repo_id, create_pr, private, revision, token)
    report = CleaningReport.load(folder)
    files = publishable_files(folder, report)
    _refuse_secrets(files, token)
    push = _Push(folder, report, files, destination)
    try:
        return push.run(commit_message or "Cleaned with hf_finemix")
    except FineMixingError:
        raise
    except Exception as error:
        told = hub_error(error, f"the repo {repo_id}", writing=True)
        raise FineMixingError(f"{told} {push.aftermath()} {folder} is whole.") from error


def check_destination(destination: Destination) -> None:
    """
    Tell before hours of work that nothing could be published there.

    Raises:
        [`FineMixingError`]: No valid token, no such repo for a pull request, or no right to write to it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    api = hub_api(destination.token)
    try:
        me = api.whoami()
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise FineMixingError("the token may only read: use a token with write access to publish.")
        if destination.create_pr:
            api.model_info(destination.repo_id)
            return
        try:
            api.auth_check(_full_id(destination.repo_id, me), write=True)
        except RepositoryNotFoundError:  # to be made
            owner = _full_id(destination.repo_id, me).split("/")[0]
            if owner not in (me.get("name"), *(org.get("name") for org in me.get("orgs") or ())):
                raise FineMixingError(
                    f"{destination.repo_id} cannot be made by {me.get('name')}: give a name of your own, or of an "
                    "organisation that you belong to."
                ) from None
    except FineMixingError:
        raise
    except Exception as error:
        raise hub_error(error, f"the repo {destination.repo_id}", writing=True) from error


def _full_id(repo_id: str, me: dict) -> str:
    return repo_id if "/" in repo_id else f"{me.get('name')}/{repo_id}"


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


def _refuse_secrets(files: Mapping[str, Path | bytes], token: str | None) -> None:
    secrets = known_secrets(token)
    found = [name for name, file in files.items() if holds_secret(file, secrets)]
    if found:
        raise FineMixingError(
            f"{found[0]} holds an access token or a secret of this environment: take it out; nothing was uploaded."
        )


class _Push:
    """One commit to one place."""

    def __init__(self, folder: Path, report: CleaningReport, files: dict[str, Path], destination: Destination):
        self.folder, self.report, self.files, self.destination = folder, report, files, destination
        self.api = hub_api(destination.token)
        self.repo_id, self.parent = destination.repo_id, None
        self.sent = False

    def run(self, message: str) -> PublishedModel:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        to, files = self.destination, self.files
        if not to.create_pr and not (to.revision or "").startswith("refs/pr/"):
            self.repo_id = self.api.create_repo(self.repo_id, private=to.private, exist_ok=True).repo_id
            if to.revision:
                self.api.create_branch(self.repo_id, branch=to.revision, exist_ok=True)
        there = self.api.model_info(self.repo_id, revision=to.revision, files_metadata=True)
        if to.private and not there.private:
            raise FineMixingError(
                f"{self.repo_id} is there already and public: make it private in its settings, or give another name."
            )
        self.parent = there.sha
        sizes = {file.rfilename: file.size or 0 for file in there.siblings or ()}
        card = self.card(sizes.get("README.md"))
        _refuse_secrets({"README.md": card}, to.token)  # it may hold a text that stands there
        removed = sorted(name for name in sizes.keys() - files.keys() if _OTHER_WEIGHTS.fullmatch(name))
        operations = [CommitOperationAdd(name, str(file)) for name, file in files.items() if name != "README.md"]
        operations += [CommitOperationAdd("README.md", card)]
        operations += [CommitOperationDelete(name) for name in removed]
        self.sent = True
        commit = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            commit_description=card_section(self.report, figures=False) if to.create_pr else None,
            revision=to.revision,
            create_pr=to.create_pr,
            parent_commit=self.parent,
        )
        hashes = self.report.weights or {}
        published = {
            name: (file.stat().st_size, hashes.get(name) or sha256_of_file(file)) for name, file in files.items()
        }
        published["README.md"] = (len(card), hashlib.sha256(card).hexdigest())
        changed = commit.pr_url is not None if to.create_pr else commit.oid != self.parent
        result = PublishedModel(self.repo_id, commit.pr_url or commit.commit_url, commit, published, removed, changed)
        _log(result)
        return result

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

    def aftermath(self) -> str:
        """What can be said of the repo after an error: an answer may be lost while the commit is made."""
        if not self.sent:
            return "Nothing was published, and"
        with suppress(Exception):
            if not self.destination.create_pr:
                head = self.api.model_info(self.repo_id, revision=self.destination.revision).sha
                return "Nothing was published, and" if head == self.parent else f"But there is a new commit, {head}."
        return "Whether it was published is not known: look there, or run this again, which does no harm."


def _log(published: PublishedModel) -> None:
    if not published.changed:
        logger.info("%s has all of it already: nothing to publish.", published.repo_id)
        return
    total = size_text(sum(size for size, _ in published.files.values()))
    logger.info("Published %d files, %s: %s", len(published.files), total, published.url)
    if published.removed:
        logger.info("Other weights were taken away there: %s.", ", ".join(published.removed))
