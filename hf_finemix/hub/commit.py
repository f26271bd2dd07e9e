"""Where a model is published: whether that may and can be, and what must not be told there."""

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import FineMixingError
from ..io.repo_names import is_repo_id
from .errors import hub_api, hub_error
from .secret_scan import holds_secret, known_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi


logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Destination:
    """
    Where a cleaned model goes. A [`FineMixingError`] for what is no Hub id.

    Attributes:
        repo_id (`str`): `name` or `org/name`.
        create_pr (`bool`): Open a pull request there in place of writing to it.
        private (`bool`, *optional*): Whether the repo is private, where it is made anew. `False` says that what is
            made of private models and data may be public.
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

    def command(self, folder: Path) -> str:
        """The command that publishes a folder there."""
        flags = ["--create-pr"] if self.create_pr else []
        flags += ["--revision", self.revision] if self.revision else []
        flags += [] if self.private is None else ["--private", str(self.private).lower()]
        return shlex.join(["hf-finemix", "push", str(folder), self.repo_id, *flags])


def check_destination(destination: Destination) -> None:
    """
    Tell before hours of work that nothing could be published there: no valid token, no such repo for a pull request,
    no right to write to it, or a public repo where a private one is asked for.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    api, repo_id = hub_api(destination.token), destination.repo_id
    with _one_line(destination):
        me: dict[str, Any] = _told(api.whoami, "who this token is of") or {}
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise FineMixingError("the token may only read: use a token with write access to publish.")
        if destination.create_pr:
            api.model_info(repo_id)
            return
        try:
            _told(lambda: api.auth_check(_full_id(repo_id, me), write=True), f"whether it may write to {repo_id}")
        except RepositoryNotFoundError:  # to be made
            owner = _full_id(repo_id, me).split("/")[0]
            if me and owner not in (me.get("name"), *(org.get("name") for org in me.get("orgs") or ())):
                raise FineMixingError(
                    f"{repo_id} cannot be made by {me.get('name')}: give a name of your own, or of an "
                    "organization that you belong to."
                ) from None
        refuse_public(destination, _visibility(api, destination))


def refuse_private_sources(destination: Destination, sources: Iterable[tuple[str, str]]) -> None:
    """
    Nobody publishes by mistake what is made of something private, unless the repo is, or `private=False` says it may
    be. Each source is `"model"` or `"dataset"`, and its id on the Hub.
    """
    with _one_line(destination):
        refuse_private(hub_api(destination.token), destination, sources)


def refuse_private(api: "HfApi", destination: Destination, sources: Iterable[tuple[str, str]]) -> None:
    """As [`refuse_private_sources`], with the errors of the client as they are."""
    if destination.private is not None or _visibility(api, destination) is True:
        return
    for kind, name in dict.fromkeys(sources):
        private = False
        with suppress(Exception):  # a Hub that does not know it, or does not tell
            private = api.repo_info(name, repo_type=kind).private
        if private:
            raise FineMixingError(
                f"the {kind} {name} is private, and {destination.repo_id} is public or would be: make it private "
                "(--hub-private-repo, of push --private), or say that it may be public (the same with false)."
            )


@contextmanager
def _one_line(destination: Destination) -> Iterator[None]:
    """A block whose errors are told of the place that is published to."""
    try:
        yield
    except Exception as error:
        raise hub_error(error, f"the repo {destination.repo_id}", writing=True) from error


def _visibility(api: "HfApi", destination: Destination) -> bool | None:
    """Whether the repo is private; `None` where it is still to be made."""
    from huggingface_hub.errors import RepositoryNotFoundError

    repo_id = destination.repo_id
    try:
        return bool(api.model_info(repo_id if "/" in repo_id else _full_id(repo_id, api.whoami())).private)
    except RepositoryNotFoundError:
        return None


def refuse_public(destination: Destination, private: bool | None) -> None:
    if destination.private and private is False:
        raise FineMixingError(
            f"{destination.repo_id} is there already and public: make it private in its settings, or give another "
            "name."
        )


def _told(ask: Callable[[], T], what: str) -> T | None:
    """What the Hub answers; `None`, and a warning, where it has no such answers to give."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return ask()
    except RepositoryNotFoundError:
        raise
    except HfHubHTTPError as error:
        if error.response.status_code not in (404, 405, 501):
            raise
        logger.warning("The Hub does not tell %s: only publishing will.", what)
        return None


def _full_id(repo_id: str, me: dict) -> str:
    return repo_id if "/" in repo_id else f"{me.get('name')}/{repo_id}"


def refuse_secrets(files: Mapping[str, Path | bytes], token: str | None) -> None:
    secrets = known_secrets(token)
    found = [name for name, file in files.items() if holds_secret(file, secrets)]
    if found:
        raise FineMixingError(
            f"{found[0]} holds an access token or a secret of this environment: take it out; nothing was uploaded."
        )
