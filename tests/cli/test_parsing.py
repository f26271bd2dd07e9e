import os
import subprocess
import sys
from argparse import ArgumentTypeError

import pytest
from helpers.toy import ROOT
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments
from transformers.hf_argparser import string_to_bool

from hf_finemix.cleaning.arguments import CleaningArguments
from hf_finemix.cli.evaluate import EvaluateArguments
from hf_finemix.cli.mix import MixArguments
from hf_finemix.cli.parsing import CommandParser, yes_or_no
from hf_finemix.cli.plan import PlanArguments
from hf_finemix.cli.push import PushArguments
from hf_finemix.cli.verify import VerifyArguments
from hf_finemix.config import FineMixingConfig
from hf_finemix.redteam.poisoned_model import PoisonArguments

DATACLASSES = [CleaningArguments, EvaluateArguments, FineMixingConfig, MixArguments, PlanArguments]
DATACLASSES += [PoisonArguments, PushArguments, VerifyArguments, TrainingArguments, Seq2SeqTrainingArguments]
HEAVY = {"torch", "transformers", "datasets", "pandas", "pyarrow", "evaluate", "accelerate", "peft"}
HEAVY |= {"huggingface_hub.hf_api"}


class Recorded(HfArgumentParser):
    """The parser of transformers, and what it asks argparse for."""

    def add_argument(self, *names, **settings):
        action = super().add_argument(*names, **settings)
        self.actions = [*getattr(self, "actions", []), action]
        return action


def described(actions):
    """Flags, destination, values taken, type, default and help of each."""
    told = []
    for action in actions:
        kind = action.type if action.type not in (string_to_bool, yes_or_no) else bool
        shape = (action.nargs, action.const) if kind is not bool else ("?", True)  # ours are switches in any case
        what = (kind, action.default, action.choices, action.required, action.help)
        told.append((tuple(action.option_strings), action.dest, type(action), shape, repr(what)))
    return told


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_flags_are_those_of_transformers(kind):
    """Of every dataclass that a command takes: the parser of transformers is the judge."""
    theirs = Recorded(kind, add_help=False).actions
    ours = dict.fromkeys(CommandParser("x", None, kind, with_json=False)._flags.values())
    ours = [action for action in ours if action.dest not in ("help", "config")]
    plain = [line for line in described(theirs) if "function make_choice" not in line[-1]]  # a new function each time
    assert plain == [line for line in described(ours) if "function make_choice" not in line[-1]]
    assert [line[:4] for line in described(theirs)] == [line[:4] for line in described(ours)]


def test_ratios_are_texts_until_the_config_reads_them():
    flags = ["--base-model", "b", "--reserve-ratio", "0.4", "--module_ratios", '{"a": 0.5}']
    config, _ = CommandParser("x", None, FineMixingConfig).parse(flags)
    assert (config.reserve_ratio, config.module_ratios) == (0.4, {"a": 0.5})


def test_a_switch_with_a_value():
    values = {text: yes_or_no(text) for text in ("yes", "True", "t", "Y", "1", "no", "false", "F", "n", "0")}
    assert values == {text: string_to_bool(text) for text in values}
    with pytest.raises(ArgumentTypeError, match="'maybe' is neither true nor false"):
        yes_or_no("maybe")


@pytest.fixture(scope="module")
def imported_by():
    """Of the heavy libraries those that a command imports, run in a process of its own."""

    def run(command, cwd):
        code = f"""
import sys
from hf_finemix.cli import main
status = main({list(map(str, command))!r})
print(status, sorted({HEAVY!r} & set(sys.modules)))
"""
        settings = {"cwd": cwd, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "timeout": 120}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **settings)
        return done.stdout.splitlines()[-1], done.stderr

    return run


def test_mix_plan_and_verify_import_nothing_that_they_do_not_need(imported_by, suspect_folder, base_folder, tmp_path):
    """Without E-PUR, which needs a tokenizer. The first mix of an architecture may ask transformers for its layout."""
    pair = [suspect_folder, "--base-model", base_folder]
    mix = ["mix", *pair, "--reserve-ratio", "0.4", "--no-purify-embeddings", "--output-dir", "out"]
    assert imported_by(mix, tmp_path)[0].startswith("0 ")
    assert imported_by([*mix, "--overwrite"], tmp_path) == ("0 []", "")
    assert imported_by(["plan", *pair], tmp_path) == ("0 []", "")
    assert imported_by(["verify", "out"], tmp_path) == ("0 []", "")


def test_the_dataset_by_the_name_that_other_commands_give_it(tmp_path):
    for flag in ("--dataset", "--dataset-name", "--dataset_name"):
        arguments, _ = CommandParser("x", None, CleaningArguments).parse([flag, "org/data"])
        assert arguments.dataset == "org/data"
    (tmp_path / "recipe.yaml").write_text("dataset_name: org/data\n")
    arguments, _ = CommandParser("x", None, CleaningArguments).parse(["--config", str(tmp_path / "recipe.yaml")])
    assert arguments.dataset == "org/data"
