"""The flags of `TrainingArguments`, as transformers has them."""

from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from .parsing import CommandParser, yes_or_no


class TrainingFlags(HfArgumentParser):
    """Reads a dataclass of transformers for another parser, and parses nothing itself."""

    def __init__(self, kind: Any, parser: CommandParser):
        self.parser = parser
        super().__init__(kind, add_help=False)

    def add_argument(self, *names: str, **settings: Any) -> Any:
        """A flag for the other parser; a switch that is given a value is told of a wrong one in our words."""
        if settings.get("type") is string_to_bool:
            settings["type"] = yes_or_no
        return self.parser.add_argument(*names, **settings)
