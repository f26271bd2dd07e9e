"""`hf-finemix clean SUSPECT`."""

import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import asdict

import torch
from transformers import TrainingArguments

from ..cleaning.arguments import CleaningArguments
from ..cleaning.clean import clean
from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..train.defaults import TRAINING_DEFAULTS
from ..train.processes import leave_group
from .parsing import CommandParser, quiet_unless_terminal


def main(argv: list[str]) -> int:
    """Clean one model and print accuracy and attack success before and after."""
    dataclasses = (CleaningArguments, FineMixingConfig, TrainingArguments)
    defaults = {**TRAINING_DEFAULTS, "output_dir": "cleaned", "disable_tqdm": not sys.stderr.isatty()}
    defaults["use_cpu"] = not torch.accelerator.is_available()  # or TrainingArguments refuses bf16
    parser = CommandParser("clean", "suspect", dataclasses, defaults=defaults)
    arguments, config, training_args, rest = parser.parse(argv)
    quiet_unless_terminal(main_process=training_args.process_index == 0)
    try:
        with redirect_stdout(sys.stderr):  # where progress bars on a terminal write the losses
            report = clean(
                rest.suspect,
                mixing_config=config,
                training_args=training_args,
                command=_without_secrets(argv),
                **asdict(arguments),
            )
    except KeyboardInterrupt as interrupt:
        if not arguments.resume or str(interrupt):  # whose words say that the folder is whole
            raise
        message = f"interrupted; the same command goes on from {training_args.output_dir}.partial."
        print(f"hf-finemix: {message}", file=sys.stderr)
        return 130
    except FineMixingError:
        leave_group()
        raise
    leave_group()
    if training_args.process_index:
        return 0
    if rest.json:
        print(report.to_json(), end="")
    else:
        print(report.summary())
        print(f"\nreserve ratio ρ = {report.mixing['reserve_ratio']:g}; written to {training_args.output_dir}")
    return 0


def _without_secrets(argv: list[str]) -> str:
    """The command line, with the values of token flags taken out."""
    shown, hide = ["hf-finemix", "clean"], False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        secret = name.startswith("--") and name.endswith("token")
        shown.append("***" if hide else f"{name}=***" if secret and equals else argument)
        hide = secret and not equals
    return shlex.join(shown)
