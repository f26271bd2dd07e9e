"""`hf-finemix poison BASE`."""

import sys
from contextlib import redirect_stdout

import torch
from transformers import TrainingArguments

from ..errors import printable
from ..measure.notes import said_unreadable
from ..redteam.poisoned_model import POISONING_DEFAULTS, PoisonArguments, poison_model
from ..report.report import percent
from .parsing import CommandParser, print_json, quiet_unless_terminal


def main(argv: list[str]) -> int:
    """Backdoor one model, and print its accuracy and attack success."""
    defaults = {**POISONING_DEFAULTS, "output_dir": "backdoored", "disable_tqdm": not sys.stderr.isatty()}
    defaults["use_cpu"] = not torch.accelerator.is_available()  # or TrainingArguments refuses bf16

    def parse(more: dict) -> tuple:
        parser = CommandParser("poison", "base", (PoisonArguments, TrainingArguments), defaults={**defaults, **more})
        return parser.parse(argv)

    # An attack has defaults of its own, which the flags must win over: first see which it is.
    arguments, _, _ = parse({})
    arguments, training_args, rest = parse(arguments.make_attack().training)
    quiet_unless_terminal()
    with redirect_stdout(sys.stderr):
        manifest = poison_model(rest.base, arguments, training_args, training_args.output_dir)
    if rest.json:
        print_json(manifest)
        return 0
    measured = manifest["measured"]
    print(f"accuracy {percent(measured['accuracy'])} (n = {measured['n']})")
    for trigger in measured["triggers"]:
        print(f"attack success {percent(trigger['asr'])} (n = {trigger['n']}), trigger {trigger['trigger']!r}")
        if note := said_unreadable(trigger):
            print(printable(note))
    print(f"written to {training_args.output_dir}: backdoored on purpose, for tests of defenses only")
    return 0
