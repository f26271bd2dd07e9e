"""`hf-finemix verify MODEL`."""

from dataclasses import dataclass, field

from ..errors import FineMixingError
from ..hub.fetch import TrustArguments
from ..verification import verify_mix
from .parsing import CommandParser, log_plainly, print_json


@dataclass
class VerifyArguments(TrustArguments):
    """Where the models are, if not where the report says."""

    suspect: str | None = field(default=None, metadata={"help": "Hub id or folder of the suspect."})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the base.", "aliases": ["--base"]}
    )
    num_workers: int | None = field(default=None, metadata={"help": "Threads; default: one a core, at most 8."})


def main(argv: list[str]) -> int:
    """Check one mixed or cleaned folder; an error where it is not what its report says."""
    arguments, rest = CommandParser("verify", "model", VerifyArguments).parse(argv)
    log_plainly()
    found = verify_mix(
        rest.model,
        suspect=arguments.suspect,
        base_model=arguments.base_model,
        trust=arguments,
        num_workers=arguments.num_workers,
    )
    if rest.json:
        print_json(found.to_dict())
    elif found.ok:
        print(found.summary())
    if not found.ok:
        raise FineMixingError(found.failure())
    return 0
