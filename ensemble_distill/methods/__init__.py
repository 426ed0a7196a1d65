"""Methods, a paper a file; a file's name is the method's."""

from __future__ import annotations

from typing import cast

from ensemble_distill.errors import EdistillError, nearest
from ensemble_distill.methods.method import Method
from ensemble_distill.methods.users import UsersMethod
from ensemble_distill.runtime.registry import Registry

_METHODS = Registry(__name__, "METHOD")


def method_names() -> tuple[str, ...]:
    """The built-in methods, in alphabetical order."""
    return _METHODS.keys


def open_method(name: str) -> Method:
    """A method by name, or the user's own as `file.py:Class`.

    Raises:
        EdistillError: there is no such method, or the class is no `Method`.
    """
    if ":" in name:
        return UsersMethod(name)
    if name not in method_names():
        close = nearest(name, method_names())
        hint = f"Did you mean {close[0]}?" if close else f"The methods are {', '.join(method_names())}."
        raise EdistillError(f"train.method is {name!r}, which is no method. {hint}")
    return cast(Method, _METHODS[name].METHOD())
