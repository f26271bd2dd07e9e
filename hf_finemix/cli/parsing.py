"""What the subcommands' parsers share: dataclasses as flags, a YAML file of the same keys, one-line errors."""

import difflib
import json
import logging
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import FineMixingError
from ..io.recipe_file import read_recipe, typed


def yes_or_no(text: str) -> bool:
    """The value of a switch that is given one."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise ArgumentTypeError(f"{text!r} is neither true nor false")


class CommandParser(ArgumentParser):
    """
    The fields of dataclasses as flags, a positional model, `--config recipe.yaml`, and errors of one line.

    Args:
        command (`str`): Name of the subcommand.
        positional (`str`, *optional*): Name of the positional argument: a model, a `folder` or a `recipe`.
        dataclass_types (`type` or `Iterable[type]`):
            Whose fields are the flags, as [`~transformers.HfArgumentParser`] has them. Importing that takes longer
            than to mix a small model: it is asked for the dataclasses of transformers only.
        defaults (`dict`, *optional*): In place of the dataclasses' own.
        with_json (`bool`, *optional*, defaults to `True`): Whether there is `--json`.
    """

    def __init__(
        self,
        command: str,
        positional: str | None,
        dataclass_types: type | Iterable[type],
        *,
        defaults: dict[str, Any] | None = None,
        with_json: bool = True,
    ):
        self._flags: dict[str, Action] = {}
        formatter = ArgumentDefaultsHelpFormatter
        super().__init__(prog=f"hf-finemix {command}", allow_abbrev=False, formatter_class=formatter)
        self.dataclass_types: list[Any] = (
            [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types)
        )
        for kind in self.dataclass_types:
            if kind.__module__.startswith("transformers."):
                from .training_flags import TrainingFlags

                TrainingFlags(kind, self.add_argument, yes_or_no)
            else:
                hints = get_type_hints(kind)
                for field in fields(kind):
                    self._add_field(field, hints[field.name])
        self.set_defaults(**(defaults or {}))
        self._model = None
        if positional:
            what = {"folder": "Folder that clean wrote.", "recipe": "YAML file, see benchmarks/recipes."}
            text = what.get(positional, "Hub id or local folder.")
            self._model = self.add_argument(positional, metavar=positional.upper(), help=text)
        self.add_argument("--config", metavar="RECIPE.yaml", help="YAML file of the same keys; flags win over it.")
        if with_json:
            self.add_argument("--json", action="store_true", help="Print the result as JSON on standard output.")

    def add_argument(self, *names: str, **settings: Any) -> Action:
        """As in argparse, which has no public way to ask for a flag's action later on."""
        if settings.get("type") is yes_or_no:  # a switch, also where it may be left open
            settings = {"nargs": "?", "const": True, **settings}
        action = super().add_argument(*names, **settings)
        self._flags |= dict.fromkeys(action.option_strings, action)
        return action

    def _add_field(self, field: Field, hint: Any) -> None:
        members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kind = str if str in members else next(member for member in members if member is not NoneType)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        settings = {"default": default, "help": field.metadata.get("help")}
        names = list(dict.fromkeys((field.name, field.name.replace("_", "-"))))
        flags = [*(f"--{name}" for name in names), *field.metadata.get("aliases", ())]
        if get_origin(kind) is list:
            self.add_argument(*flags, type=get_args(kind)[0], nargs="+", **settings)
        else:
            self.add_argument(*flags, type=yes_or_no if kind is bool else kind, **settings)
        if kind is bool and default is True:
            settings["default"] = False
            flags = [f"--no_{field.name}", f"--no-{names[-1]}"]
            self.add_argument(*flags, action="store_false", dest=field.name, **settings)

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """The dataclasses and a namespace of the rest. Every key of the recipe must be a flag."""
        self._refuse_repeated_lists(argv)
        flags: list[str] = []
        for key, value in self._recipe(argv).items():
            name = key.replace("-", "_")
            if self._model is not None and name == self._model.dest:
                self._model.nargs, self._model.required, self._model.default = "?", False, str(value)
            elif (action := self._flags.get(f"--{name}")) is None or name in ("help", "config", "json"):
                self.error(f"unknown key {key!r} in the recipe")
            elif isinstance(value, list):
                flags += [f"--{name}", *("null" if part is None else str(part) for part in value)]
            elif value is not None:
                value = typed(value, bool if action.type is yes_or_no else str)
                flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        # Ahead of the command line's own flags, of which the last one counts; "--config=" ends a list.
        argv = [*flags, "--config=", *argv]
        try:
            namespace, unknown = self.parse_known_args(argv)
            values = vars(namespace)
            parsed = [
                kind(**{field.name: values.pop(field.name) for field in fields(kind) if field.init})
                for kind in self.dataclass_types
            ]
        except FineMixingError:
            raise
        except (ValueError, ImportError) as error:  # TrainingArguments checks its own
            raise FineMixingError(" ".join(str(error).split())) from error
        if unknown:
            self._unknown(unknown[0].split("=")[0])
        return (*parsed, namespace)

    def _refuse_repeated_lists(self, argv: list[str]) -> None:
        """argparse would take the last of `--trigger a --trigger b` and drop the others without a word."""
        given = [self._flags.get(argument.partition("=")[0]) for argument in argv]
        for action in {action for action in given if action is not None and action.nargs == "+"}:
            if given.count(action) > 1:
                self.error(f"{action.option_strings[0]} is given {given.count(action)} times: put all after one")

    def _unknown(self, argument: str):
        near = difflib.get_close_matches(argument, self._flags, 1)
        hint = f": did you mean {near[0]}?" if near else "" if argument.startswith("-") else ": a value needs its flag"
        self.error(f"unknown argument {argument!r}{hint}")

    def error(self, message: str):
        if self._model is not None and message.endswith(f"required: {self._model.metavar}"):
            message += " (put it first: a flag with several values takes all that follows)"
        message = message if message.endswith("?") else f"{message.rstrip('.')}."
        raise FineMixingError(f"{message} See `{self.prog} --help`.")

    def _recipe(self, argv: list[str]) -> dict[str, Any]:
        path = None
        for flag, value in zip(argv, [*argv[1:], None], strict=False):
            if flag.startswith("--config="):
                path = flag.removeprefix("--config=")
            elif flag == "--config":
                path = value
        return {} if path is None else read_recipe(path)


def print_json(value: Any) -> None:
    """Print JSON in ASCII: names from a stranger's file may hold control characters."""
    print(json.dumps(value, indent=2))


def log_plainly() -> None:
    """
    Notable things of this package as plain lines on standard error; nothing of the libraries, whose failures are told
    once, by our error; the Hub's progress bars on a terminal only.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("hf_finemix")
    package.handlers = [handler]
    package.setLevel(logging.INFO)
    package.propagate = False
    # The libraries read these when they are imported, which may be late or never; some may be there already.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_VERBOSITY="error")
    for library in ("transformers", "huggingface_hub"):
        if f"{library}.utils.logging" in sys.modules:
            sys.modules[f"{library}.utils.logging"].set_verbosity_error()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        if "huggingface_hub.utils" in sys.modules:
            sys.modules["huggingface_hub.utils"].disable_progress_bars()


def quiet_unless_terminal(main_process: bool = True) -> None:
    """[`log_plainly`], and progress bars on a terminal only, for commands that load models and data; once a job."""
    import datasets
    from transformers.utils import logging as transformers_logging

    log_plainly()
    if not main_process:
        logging.getLogger("hf_finemix").setLevel(logging.CRITICAL)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails is told once, by the error
    if not (main_process and sys.stderr.isatty()):
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
