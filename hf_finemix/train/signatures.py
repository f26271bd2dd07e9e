"""What a Trainer class shows of its methods: the parameters of the Trainer that it extends, not `*args, **kwargs`."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any


def show_signatures(cls: Any, mixin: Any, keyword_only: Iterable[inspect.Parameter] = ()) -> None:
    """
    Let what `cls` has from `mixin` show the signatures of what the mixin overrides in this very class.

    Launchers choose by `inspect.signature` what they pass (`processing_class` or `tokenizer`), and a mixin cannot name
    the parameters of a class that it does not know. So `cls`, which has `mixin` before a Trainer among its bases, gets
    thin methods of its own; `keyword_only` is what `__init__` takes besides.
    """
    for name, method in vars(mixin).items():
        overridden = getattr(super(mixin, cls), name, None)
        if not inspect.isfunction(method) or not callable(overridden) or getattr(cls, name) is not method:
            continue  # no method, nothing behind it, or another class comes before
        signature = inspect.signature(overridden)
        if name == "__init__":
            parameters = [*signature.parameters.values(), *keyword_only]
            signature = signature.replace(parameters=sorted(parameters, key=lambda parameter: parameter.kind))
        setattr(cls, name, _passed_on(cls, name, method, signature))


def _passed_on(cls: Any, name: str, method, signature: inspect.Signature):
    @functools.wraps(method)
    def passed_on(self, *args, **kwargs):
        return getattr(super(cls, self), name)(*args, **kwargs)

    passed_on.__signature__ = signature
    return passed_on
