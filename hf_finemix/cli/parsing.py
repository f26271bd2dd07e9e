"""What the subcommands' parsers share: dataclasses as flags, a YAML file of the same keys, one-line errors."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from ..errors import FineMixingError

__all__ = ["CommandParser", "quiet_unless_terminal"]


class CommandParser(HfArgumentParser):
    """
    [`~transformers.HfArgumentParser`] with a positional model, `--config recipe.yaml`, and errors of one line.

    Args:
        command (`str`): Name of the subcommand.
        positional (`str`): Name of the positional argument.
        dataclass_types (`Iterable`): As for [`~transformers.HfArgumentParser`].
        defaults (`dict`, *optional*): In place of the dataclasses' own.
    """

    def __init__(
        self, command: str, positional: str, dataclass_types: Iterable, *, defaults: dict[str, Any] | None = None
    ):
        super().__init__(dataclass_types, prog=f"hf-finemix {command}", allow_abbrev=False)
        self.set_defaults(**(defaults or {}))
        self.add_argument(positional, metavar=positional.upper(), help="Hub id or local folder.")
        self.add_argument("--config", metavar="RECIPE.yaml", help="YAML file of the same keys; flags win over it.")
        self.add_argument("--json", action="store_true", help="Print the result as JSON on standard output.")

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """The dataclasses and a namespace of the rest. Every key of the recipe must be a flag."""
        recipe = self._recipe(argv)
        actions = {action.dest: action for action in self._actions}
        for key, value in recipe.items():
            action = actions.get(key.replace("-", "_").lstrip("_"))
            if action is None or action.dest in ("help", "config"):
                self.error(f"unknown key {key!r} in the recipe: `--help` lists the keys there are.")
            if not action.option_strings:
                argv = [*argv, str(value)] if not any(a for a in argv[:1] if not a.startswith("-")) else argv
                continue
            # Ahead of the command line's own flags, of which the last one counts.
            values = (
                value
                if isinstance(value, list)
                else [yaml.safe_dump(value).strip() if isinstance(value, dict) else value]
            )
            argv = [f"--{action.dest}", *map(str, values), *argv]
        try:
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        except FineMixingError:
            raise
        except (ValueError, ImportError) as error:  # TrainingArguments checks its own
            raise FineMixingError(" ".join(str(error).split())) from error

    def error(self, message: str):
        raise FineMixingError(f"{message.rstrip('.')}. See `{self.prog} --help`.")

    def _recipe(self, argv: list[str]) -> dict[str, Any]:
        path = None
        for i, argument in enumerate(argv):
            if argument == "--config":
                path = argv[i + 1] if i + 1 < len(argv) else None
            elif argument.startswith("--config="):
                path = argument.removeprefix("--config=")
        if path is None:
            return {}
        try:
            with open(path, encoding="utf-8") as file:
                recipe = yaml.safe_load(file) or {}
        except (OSError, yaml.YAMLError) as error:
            raise FineMixingError(f"the recipe {path} cannot be read: {error}.") from error
        if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
            raise FineMixingError(f"the recipe {path} is not a YAML mapping of keys to values.")
        return recipe


def quiet_unless_terminal() -> None:
    """Progress bars on a terminal only; notable things as plain lines on standard error."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("hf_finemix")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
        transformers_logging.disable_progress_bar()
