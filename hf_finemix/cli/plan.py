"""`hf-finemix plan SUSPECT`."""

from dataclasses import dataclass, field

from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..hub.fetch import TrustArguments
from ..planning import plan_mix
from .parsing import CommandParser, log_plainly, print_json


@dataclass
class PlanArguments(TrustArguments):
    """What `mix` would be given."""

    suspect_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the suspect."})
    output_dir: str = field(default="mixed", metadata={"help": "Where the mix would go: its free space is told."})


def main(argv: list[str]) -> int:
    """Print what mixing would do and need; an error where it would be refused."""
    arguments, config, rest = CommandParser("plan", "suspect", (PlanArguments, FineMixingConfig)).parse(argv)
    log_plainly()
    plan = plan_mix(
        rest.suspect,
        mixing_config=config,
        suspect_revision=arguments.suspect_revision,
        trust=arguments,
        output_dir=arguments.output_dir,
    )
    if rest.json:
        print_json(plan.to_dict())
    elif plan.refused is None:
        print(plan.summary())
    if plan.refused is not None:
        raise FineMixingError(plan.refused)
    return 0
