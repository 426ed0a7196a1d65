"""Methods, a paper a file; a file's name is the method's."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import cast

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Method
from ensemble_distill.methods.users import UsersMethod

APART = ("method", "users")  # what methods are made of


def method_names() -> tuple[str, ...]:
    """The built-in methods, in alphabetical order."""
    return tuple(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in APART)


def open_method(name: str) -> Method:
    """A method by name, or the user's own as `file.py:Class`.

    Raises:
        EdistillError: there is no such method, or the class is no `Method`.
    """
    if ":" in name:
        return UsersMethod(name)
    if name not in method_names():
        close = difflib.get_close_matches(name, method_names(), n=1)
        hint = f"Did you mean {close[0]}?" if close else f"The methods are {', '.join(method_names())}."
        raise EdistillError(f"train.method is {name!r}, which is no method. {hint}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast(Method, module.METHOD())
