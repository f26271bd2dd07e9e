"""A last look at what is about to be uploaded: no token may be in it."""

import os
import re
from collections.abc import Collection
from pathlib import Path

CHUNK_BYTES = 1 << 24
# Tokens of the Hub, whoever they belong to.
_HUB_TOKEN = re.compile(rb"(?:hf|api_org)_[A-Za-z0-9]{30,100}")
_SECRET_VARIABLE = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_SHORTEST, _LONGEST = 12, 4096


def known_secrets(*given: str | None) -> set[bytes]:
    """The secrets of this process: those given, the Hub token in use, and values of variables like `WANDB_API_KEY`."""
    from huggingface_hub import get_token

    named = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)]
    values = [value.strip() for value in (*given, get_token(), *named) if value]
    return {value.encode() for value in values if _SHORTEST <= len(value) <= _LONGEST}


def holds_secret(content: bytes | Path, secrets: Collection[bytes]) -> bool:
    """Whether a file (or its content) holds one of the secrets, or anything that looks like a token of the Hub."""
    if isinstance(content, bytes):
        return any(secret in content for secret in secrets) or _holds_hub_token(content)
    with open(content, "rb") as file:
        tail = b""
        while chunk := file.read(CHUNK_BYTES):
            if holds_secret(tail + chunk, secrets):
                return True
            tail = chunk[-_LONGEST:]  # a secret may lie across two chunks
    return False


def _holds_hub_token(content: bytes) -> bool:
    """As `_HUB_TOKEN.search` tells, and faster in the bytes of weights."""
    for prefix in (b"hf_", b"api_org_"):
        place = content.find(prefix)
        while place >= 0:
            if _HUB_TOKEN.match(content, place):
                return True
            place = content.find(prefix, place + 1)
    return False
