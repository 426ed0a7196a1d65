"""Methods, one paper per file; the file's name is the method's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from ensemble_distill.errors import EdistillError, meant
from ensemble_distill.methods.method import Method
from ensemble_distill.methods.users import UsersMethod
from ensemble_distill.runtime.problems import mended, said
from ensemble_distill.runtime.registry import Registry
from ensemble_distill.tasks import Task

_METHODS = Registry(__name__, "METHOD")


def method_names() -> tuple[str, ...]:
    """The built-in methods, in alphabetical order."""
    return _METHODS.keys


def open_method(name: str) -> Method:
    """A method by name, or the user's own as `file.py:Class`.

    Raises:
        EdistillError: there is no such method, or the class is not a `Method`.
    """
    if ":" in name:
        return UsersMethod(name)
    if name not in method_names():
        hint = meant(name, method_names(), f"Use one of {', '.join(method_names())}.")
        raise EdistillError(f"train.method is {name!r}, which is not a method. {hint}")
    return cast(Method, _METHODS[name].METHOD())


def settled_method(
    name: str, given: Mapping[str, Any], task: type[Task], from_members: bool
) -> tuple[Method, BaseModel]:
    """A method and its options, including defaults that depend on the task or on a start from members.

    Args:
        name: see `open_method`.
        given: the `[method]` table.
        task: the task of the ensemble.
        from_members: whether the student starts from several members.

    Raises:
        EdistillError: there is no such method or option, or the method does not support the task.
    """
    method = open_method(name)
    options = method.settled(method_options(method, name, given), task, from_members)
    if task.key not in method.tasks:
        raise EdistillError(
            f"{name} is for {' and '.join(sorted(method.tasks))}, and the task is {task.key}. Use another --method; "
            "edistill methods lists them."
        )
    return method, options


def method_options(method: Method, name: str, given: Mapping[str, Any]) -> BaseModel:
    """The `[method]` table as the method's options. Raises EdistillError for an option that they do not accept."""
    try:
        return method.Options.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise EdistillError(f"method.{key} is not set, and {name} needs it. Set it.") from None
        valid = ", ".join(name.replace("_", "-") for name in method.Options.model_fields) or "none"
        if problem["type"] == "extra_forbidden":
            near = meant(key, valid.split(", "), "Leave it out.")
            raise EdistillError(f"method.{key} is not an option of {name}. Its options are {valid}. {near}") from None
        told = f"method.{key} is {problem['input']!r}: {said(problem)}. {mended(problem)}"
        raise EdistillError(told.rstrip()) from None
