"""`hf-finemix mix SUSPECT`."""

import shlex
from dataclasses import asdict, dataclass, field

from ..config import FineMixingConfig
from ..disk_mixing import mix_checkpoints
from ..hub.fetch import TrustArguments
from .parsing import CommandParser, log_plainly, print_json


@dataclass
class MixArguments(TrustArguments):
    """Where from, where to, and with what."""

    suspect_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the suspect."})
    output_dir: str = field(default="mixed", metadata={"help": "Folder to write."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Weights a file; the memory needed is the same."})
    num_workers: int | None = field(default=None, metadata={"help": "Threads; default: one a core, at most 8."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier mix in the output folder."})


def main(argv: list[str]) -> int:
    """Mix two checkpoints and say how much of each was taken."""
    arguments, config, rest = CommandParser("mix", "suspect", (MixArguments, FineMixingConfig)).parse(argv)
    log_plainly()
    report = mix_checkpoints(
        rest.suspect,
        output_dir=arguments.output_dir,
        mixing_config=config,
        suspect_revision=arguments.suspect_revision,
        trust=arguments,
        max_shard_size=arguments.max_shard_size,
        num_workers=arguments.num_workers,
        overwrite=arguments.overwrite,
        command=shlex.join(["hf-finemix", "mix", *argv]),
    )
    if rest.json:
        print_json(asdict(report))
        return 0
    tensors = report.mixing["tensors"].values()
    mixed = [tensor for tensor in tensors if "mixed" in tensor["rule"]]
    print(f"{len(mixed)} tensors mixed at ρ = {report.mixing['reserve_ratio']:g}, {len(tensors) - len(mixed)} kept")
    if report.purified_tokens:
        print(f"{len(report.purified_tokens)} word embeddings are the base's again (E-PUR)")
    print(f"written to {arguments.output_dir} in {report.timings_s['mix']:.1f} s")
    return 0
