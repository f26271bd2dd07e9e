"""YAML files of settings, in which a word is a text and what it becomes is up to the field that it is for."""

import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..errors import FineMixingError, told_as

_TRUTH = dict.fromkeys(("true", "yes", "on", "y", "t"), True) | dict.fromkeys(("false", "no", "off", "n", "f"), False)


class Plain(str):
    """A scalar that is written without quotes: the field that it is for decides whether it is a number."""


class _Loader(yaml.SafeLoader):
    """Scalars as they are written: YAML 1.1 would make `no` a boolean, `0123` an octal and `12:30` a number."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        return Plain(node.value) if node.style is None else str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_scalar)


def read_recipe(path: str | Path, *, expand: bool = False) -> dict[str, Any]:
    """
    The settings of a YAML file, `${NAME}` taken from the environment where it is to `expand`. A scalar is a text, for
    [`typed`] to make what a field wants; `null` is `None`.
    """
    with told_as(f"the recipe {path} cannot be read", None, (OSError, ValueError, RecursionError, yaml.YAMLError)):
        text = Path(path).read_text(encoding="utf-8")
        if expand:
            text = os.path.expandvars(text)
            if missing := re.search(r"\$\{(\w+)\}", re.sub(r"(?m)#.*$", "", text)):
                raise FineMixingError(f"the recipe {path} needs the variable {missing[1]}: {missing[1]} is not set.")
        recipe = yaml.load(text, _Loader) or {}
    if not isinstance(recipe, dict) or not all(isinstance(key, str) for key in recipe):
        raise FineMixingError(f"the recipe {path} is not a YAML mapping of keys to values.")
    return recipe


def typed(value: Any, kind: Any = None) -> Any:
    """
    What is written in a recipe as a field of some type wants it: a text as it stands where the field takes one. For a
    field of any kind, numbers, `true` and `false` are what JSON takes for them.
    """
    words = str(kind)
    if isinstance(value, dict):
        return {str(key): typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part, kind) for part in value]
    if not isinstance(value, Plain):
        return value
    if re.search(r"\bstr\b", words):
        return str(value)
    if re.search(r"\bbool\b", words) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if re.search(r"\bint\b", words) and re.fullmatch(r"[-+]?\d[\d_]*", value):
        return int(value)
    try:
        return json.loads(value, parse_constant=str)
    except ValueError:
        return str(value)
