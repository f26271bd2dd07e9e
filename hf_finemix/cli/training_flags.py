"""The flags of `TrainingArguments`, as transformers has them."""

from collections.abc import Callable
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool


class TrainingFlags(HfArgumentParser):
    """Reads a dataclass of transformers for another parser, and parses nothing itself."""

    def __init__(self, kind: Any, add: Callable[..., Any], switch: Callable[[str], bool]):
        self._add, self._switch = add, switch
        super().__init__(kind, add_help=False)

    def add_argument(self, *names: str, **settings: Any) -> Any:
        """A flag for the other parser; a switch that is given a value is told of a wrong one in our words."""
        if settings.get("type") is string_to_bool:
            settings["type"] = self._switch
        return self._add(*names, **settings)
