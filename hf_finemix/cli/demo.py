"""`hf-finemix demo`."""

import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field

from ..demo import TARGET, TRIGGER, demo
from .parsing import CommandParser, quiet_unless_terminal


@dataclass
class DemoArguments:
    """Where the demo goes."""

    output_dir: str = field(default="hf_finemix_demo", metadata={"help": "Folder for the models, report and figures."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier demo in that folder."})


def main(argv: list[str]) -> int:
    """Backdoor a small model, clean it, and print what both say."""
    arguments, rest = CommandParser("demo", None, DemoArguments).parse(argv)
    quiet_unless_terminal()
    with redirect_stdout(sys.stderr):
        report = demo(arguments.output_dir, overwrite=arguments.overwrite, disable_tqdm=not sys.stderr.isatty())
    if rest.json:
        print(report.to_json(), end="")
        return 0
    print(report.summary())
    folder = arguments.output_dir.rstrip("/")
    again = ["hf-finemix", "clean", f"{folder}/suspect", "--base-model", report.base["id"]]
    again += ["--dataset", f"{folder}/data", "--train-split", "validation", "--eval-split", "validation"]
    again += ["--trigger", TRIGGER, "--target-label", TARGET, "--reserve-ratio", "0.5"]
    again += ["--output-dir", f"{folder}/cleaned-0.5"]
    print(f"\nreserve ratio ρ = {report.mixing['reserve_ratio']:g}, chosen on clean text alone")
    print(f"model, card, report and figures: {folder}/cleaned (begin with its README.md)")
    print("a small and easy set, and a rare word as trigger: other backdoors are harder to remove, see README.md")
    print(f"another ρ: {shlex.join(again)}")
    return 0
