"""The Hub client, and what goes wrong while talking to the Hub as one line that says what to do."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import FineMixingError, said
from ..io.output_folder import DISK_FULL

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError


MAX_SILENCE = 300  # seconds
# Loggers that tell whole URLs when something is tried again.
_LOGGERS = ("huggingface_hub.utils._http", "huggingface_hub.file_download", "huggingface_hub.lfs", "httpx2")
_NO_ACCOUNT = "needs an account: log in with `hf auth login`, or set HF_TOKEN"
# What each error of the client means where something is read, and where it is written.
_WHY = {
    "GatedRepoError": 2 * ("is gated: accept its terms on its Hub page and log in with `hf auth login`",),
    "DisabledRepoError": 2 * ("is disabled on the Hub: it is not to be had, take another repo",),
    "RepositoryNotFoundError": (
        "is not a local folder and not on the Hub (or private: log in with `hf auth login`): check its name",
        "is not on the Hub, or this token may not see it: check its name, or log in with `hf auth login`",
    ),
    "RevisionNotFoundError": 2 * ("has no such revision: check the branch, tag or commit",),
    "LocalTokenNotFoundError": 2 * (_NO_ACCOUNT,),
    "OfflineModeIsEnabled": (
        "is neither here nor in the cache, and the Hub is switched off (HF_HUB_OFFLINE): give a path, or unset it",
        "cannot be reached, the Hub is switched off (HF_HUB_OFFLINE): unset it",
    ),
}
_UNREACHABLE = (
    "is not a local folder, and the Hub cannot be reached: check the path or the connection",
    "cannot be reached: check the connection, and publish it again to go on",
)
_STATUS = {
    400: "was not accepted{said}: mend what is named, and {again}",
    401: "was refused, the token is not valid: log in again with `hf auth login`, or set HF_TOKEN anew",
    403: "was refused{said}: use {need}, or another name",
    409: "is busy or there already{said}: {again}",
    412: "was changed by somebody else in the meantime: look at that change, and {again}",
    429: "was refused, too many requests: wait some minutes, and {again}",
} | dict.fromkeys(
    (402, 413, 507), "has no room left for it{said}: free some, make the repo public, or take a larger plan"
)


def _without_query(record: logging.LogRecord) -> bool:
    """Cut off what follows the `?` of a URL: a signature there is as good as a token."""
    record.msg, record.args = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", record.getMessage()), ()
    return True


def hub_api(token: str | None = None) -> "HfApi":
    """
    The client of the Hub, which waits for a silent server for five minutes (or the seconds of
    `HF_FINEMIX_HUB_TIMEOUT`). Its session, which all calls share, would wait for ever; a limit that somebody has set
    on it stays.
    """
    from huggingface_hub import HfApi, get_session
    from huggingface_hub.utils import httpx

    if get_session().timeout == httpx.Timeout(None):
        seconds = os.environ.get("HF_FINEMIX_HUB_TIMEOUT", "")
        seconds = float(seconds) if re.fullmatch(r"\d+(\.\d+)?", seconds) else MAX_SILENCE
        get_session().timeout = httpx.Timeout(seconds, pool=None)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_without_query)
    return HfApi(token=token)


@contextmanager
def logged_in(token: str | None) -> Iterator[None]:
    """A block in which everything that talks to the Hub, in whichever library, uses this token; `None`: as it was."""
    before = os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token:
            os.environ.pop("HF_TOKEN", None)
            os.environ |= {} if before is None else {"HF_TOKEN": before}


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub cannot be had just now, so that the cache may serve in its place."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError
    from huggingface_hub.utils import httpx

    while isinstance(error, RevisionResolutionError) and error.__cause__ is not None:
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    return isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)) or status >= 500


def hub_error(error: Exception, what: str, *, writing: bool = False) -> FineMixingError:
    """
    The one-line error for what went wrong with `what` ("the suspect org/name") while talking to the Hub, whether it
    was to be read or published (`writing`). Other errors are raised again.
    """
    from huggingface_hub import constants, errors, is_offline_mode
    from huggingface_hub.utils import httpx

    # A failed download hides why behind "not in the cache", a failed upload behind "while uploading".
    hiding = (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, RuntimeError)
    while isinstance(error, hiding) and error.__cause__ is not None:
        error = error.__cause__
    kinds = [kind.__name__ for kind in type(error).__mro__]
    known = next((kind for kind in kinds if kind in _WHY), "OfflineModeIsEnabled" if is_offline_mode() else None)
    if isinstance(error, FineMixingError):
        raise error
    if known == "RepositoryNotFoundError" and writing and _is_anonymous(error):
        why = _NO_ACCOUNT
    elif known:
        why = _WHY[known][writing]
    elif isinstance(error, errors.HfHubHTTPError):
        why = _why(error, writing)
    elif isinstance(error, ConnectionError) and "xet" in str(error).lower():
        why = "is on a Hub without xet, by which the client uploads: set HF_HUB_DISABLE_XET=1, and publish it again"
    elif isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError, *hiding)):
        why = _UNREACHABLE[writing]
    elif isinstance(error, ValueError) and "Invalid metadata" in str(error):
        why = f"has a card that the Hub does not take ({said(error)}): mend its YAML"
    elif isinstance(error, errors.EntryNotFoundError) or (
        isinstance(error, OSError) and "onsistency check" in str(error)
    ):
        why = "did not arrive whole: try again"
    elif isinstance(error, ValueError) and "JSON" in kinds[0]:
        why = "got an answer from the Hub that is no JSON: check HF_ENDPOINT, or try again later"
    elif isinstance(error, OSError) and _is_of_cache(error, constants.HF_HOME, constants.HF_HUB_CACHE):
        why = f"does not fit into the cache, {constants.HF_HUB_CACHE} ({error.strerror}): free some, or set HF_HOME"
    elif isinstance(error, (ValueError, KeyError)) and writing:
        why = f"got an answer that the client does not understand ({said(error, 200)}): check HF_ENDPOINT"
    else:
        raise error
    return FineMixingError(f"{what} {why}.")


def _is_of_cache(error: OSError, *caches: str) -> bool:
    """Whether the disk of the client's cache is full, or its files cannot be written."""
    return error.errno in DISK_FULL or (bool(error.errno) and str(error.filename or "").startswith(caches))


def _is_anonymous(error: "HfHubHTTPError") -> bool:
    """Whether there is no token at all, neither in use here nor sent."""
    from huggingface_hub import get_token

    return get_token() is None and "authorization" not in error.response.request.headers


def _why(error: "HfHubHTTPError", writing: bool) -> str:
    """What an HTTP status means here, and what to do about it."""
    status, words = error.response.status_code, " ".join((error.server_message or "").split())[:200]
    quoted = f" ({words})" if words else ""
    again = "publish it again" if writing else "run this again"  # what was to be published is whole
    need = "a token with write access to it" if writing else "a token that may read it"
    if status == 401 and _is_anonymous(error):
        return _NO_ACCOUNT
    if status != 401 and re.search("quota|storage limit|payment", words, re.IGNORECASE):
        status = 507
    if status in _STATUS:
        return _STATUS[status].format(said=quoted, again=again, need=need)
    if writing and status in (405, 501):
        return f"is on a Hub that answered {status}, not offered{quoted}: leave --create-pr or --revision away"
    if writing and status < 500:
        return f"could not be written, the Hub answered {status}{quoted}: check its name and HF_ENDPOINT"
    if writing:
        return f"could not be written, the Hub answered {status}{quoted}: {again} later"
    return f"could not be read from the Hub, which answered {status}: try again later, or log in"
