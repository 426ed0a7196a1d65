"""Functions in a user's Python files that may build members or bodies, found by reading: nothing of them runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.runtime.files import DOCUMENT, read_whole

MEMBERS = ("make_teacher", "make_member", "make_model", "build_model", "create_model", "get_model", "build", "model")
BODIES = ("make_body", "build_body", "make_student", "make_backbone", "body", "backbone")


@dataclass(frozen=True)
class Factory:
    """A function or class that can be called.

    Attributes:
        required: arguments without a default, in their order.
        unwritten: whether it does nothing but raise NotImplementedError, as a stub does.
        line: where that stands, or the function itself.
    """

    file: Path
    name: str
    required: tuple[str, ...]
    unwritten: bool
    line: int


def find(folders: Sequence[Path], names: Sequence[str]) -> Factory | None:
    """The first factory of those names in the Python files of some folders: earlier folders first, then earlier names.
    None where there is none."""
    for folder in dict.fromkeys(one.resolve() for one in folders):
        found = {factory.name: factory for file in _files(folder) for factory in _factories(file)}
        for name in names:
            if name in found:
                return found[name]
    return None


def _files(folder: Path) -> list[Path]:
    """model.py last, so that of two functions of one name its own stands."""
    try:
        files = [path for path in folder.glob("*.py") if path.is_file()]
    except OSError:
        return []
    return sorted(files, key=lambda path: (path.name == "model.py", path.name))


def _factories(file: Path) -> Iterator[Factory]:
    try:
        tree = ast.parse(read_whole(file, DOCUMENT))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            raises = [one for one in node.body if isinstance(one, ast.Raise)]
            unwritten = len(raises) == 1 and "NotImplementedError" in ast.dump(raises[0])
            yield Factory(file, node.name, _required(node.args), unwritten, raises[0].lineno if raises else node.lineno)


def _required(arguments: ast.arguments) -> tuple[str, ...]:
    named = [*arguments.posonlyargs, *arguments.args]
    needed = named[: len(named) - len(arguments.defaults)]
    needed += [one for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    return tuple(one.arg for one in needed)
