"""A cleaned folder in, one commit or pull request on the Hub out: only the files of a cleaned model, and no secret."""

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint import INDEX_NAME, Checkpoint, check_inside, sha256_of_file
from .config import CONFIG_NAME
from .errors import FineMixingError
from .hub import is_repo_id
from .hub_errors import hub_api, hub_error
from .model_card import card_section, merge_card, render_card, text_of_others
from .repo_contents import SMALL_FILES, size_text
from .report import REPORT_NAME, CleaningReport
from .secret_scan import holds_secret, known_secrets

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

__all__ = ["Destination", "PublishedModel", "check_destination", "publishable_files", "push_cleaned"]

logger = logging.getLogger(__name__)

# Weights that a reader might load in place of ours, once these are there.
_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model|tf_model|flax_model|adapter_model)[\w.-]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?"
)
_NOT_PUBLISHED = {"adapter_config.json"}
_ALSO_PUBLISHED = {"chat_template.jinja", "masks.safetensors"}


@dataclass(frozen=True)
class Destination:
    """
    Where a cleaned model goes.

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
        private (`bool`, *optional*): Whether the repo is private, where it is made anew.
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
    try:
        return _push(folder, report, files, destination, commit_message or "Cleaned with hf_finemix")
    except FineMixingError:
        raise
    except Exception as error:
        told = hub_error(error, f"the repo {repo_id}", writing=True)
        raise FineMixingError(f"{told} Nothing was published, and {folder} is whole.") from error


def check_destination(destination: Destination) -> None:
    """
    Tell before hours of work that nothing could be published there.

    Raises:
        [`FineMixingError`]: No valid token, no such repo for a pull request, or no right to write to it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    if not is_repo_id(destination.repo_id):
        raise FineMixingError(f"{destination.repo_id!r} is no Hub id like org/name: give one to publish to.")
    api = hub_api(destination.token)
    try:
        me = api.whoami()
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
    with Checkpoint(folder) as checkpoint:
        weights = {file.name: file for file in checkpoint.files}
    for name, file in weights.items():
        if (report.weights or {}).get(name) != sha256_of_file(file):
            raise FineMixingError(f"{file} is not the file that the report in {folder} is about: clean it anew.")
    names = (SMALL_FILES - _NOT_PUBLISHED) | _ALSO_PUBLISHED | ({INDEX_NAME} if INDEX_NAME not in weights else set())
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


def _refuse_secrets(files: dict[str, Path], token: str | None) -> None:
    secrets = known_secrets(token)
    found = [name for name, file in files.items() if holds_secret(file, secrets)]
    if found:
        raise FineMixingError(
            f"{found[0]} holds an access token or a secret of this environment: take it out; nothing was uploaded."
        )


def _push(
    folder: Path, report: CleaningReport, files: dict[str, Path], destination: Destination, message: str
) -> PublishedModel:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = hub_api(destination.token)
    repo_id = destination.repo_id
    if not destination.create_pr:
        repo_id = api.create_repo(repo_id, private=destination.private, exist_ok=True).repo_id
        if destination.revision:
            api.create_branch(repo_id, branch=destination.revision, exist_ok=True)
    there = api.model_info(repo_id, revision=destination.revision)
    names = {file.rfilename for file in there.siblings or ()}
    card = _card(api, repo_id, there.sha, folder, report, "README.md" in names)
    if holds_secret(card, known_secrets(destination.token)):
        raise FineMixingError("the card holds an access token or a secret of this environment: nothing was uploaded.")
    removed = sorted(name for name in names - files.keys() if _OTHER_WEIGHTS.fullmatch(name))
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items() if name != "README.md"]
    operations += [CommitOperationAdd("README.md", card)]
    operations += [CommitOperationDelete(name) for name in removed]
    commit = api.create_commit(
        repo_id,
        operations,
        commit_message=message,
        commit_description=card_section(report, figures=False) if destination.create_pr else None,
        revision=destination.revision,
        create_pr=destination.create_pr,
        parent_commit=there.sha,
    )
    published = {name: (file.stat().st_size, sha256_of_file(file)) for name, file in files.items()}
    published["README.md"] = (len(card), hashlib.sha256(card).hexdigest())
    changed = commit.pr_url is not None if destination.create_pr else commit.oid != there.sha
    url = commit.pr_url or commit.commit_url
    total = size_text(sum(size for size, _ in published.values()))
    if not changed:
        logger.info("%s has all of it already: nothing to publish.", repo_id)
    else:
        logger.info("Published %d files, %s: %s", len(published), total, url)
    if removed and changed:
        logger.info("Other weights were taken away there: %s.", ", ".join(removed))
    return PublishedModel(repo_id, url, commit, published, removed, changed)


def _card(api: "HfApi", repo_id: str, sha: str, folder: Path, report: CleaningReport, exists: bool) -> bytes:
    """The card to publish: what stands there, or else in the folder, with our section in it."""
    local = folder / "README.md"
    own = local.read_text(encoding="utf-8", errors="replace") if local.is_file() else ""
    text = own
    if exists:
        path = api.hf_hub_download(repo_id, "README.md", revision=sha)
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        mine, theirs = text_of_others(own), text_of_others(text)
        if mine and theirs and mine != theirs:
            logger.warning(
                "%s has a text of its own there, which stays: yours in %s is not published.", repo_id, local
            )
        elif mine:
            text = own
    return merge_card(text, render_card(report), where=f"README.md of {repo_id}").encode()
