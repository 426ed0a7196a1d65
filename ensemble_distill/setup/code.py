"""Functions in a user's Python files that may build members or bodies, found by parsing; none of the code is
executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.runtime.files import DOCUMENT, read_whole

MEMBERS = (
    *("make_teacher", "make_member", "make_model", "make_net", "make_network", "build_model", "build_net"),
    *("create_model", "get_model", "build", "model"),
)
BODIES = ("make_body", "build_body", "make_student", "make_backbone", "body", "backbone")


@dataclass(frozen=True)
class Factory:
    """A function that may build members or bodies.

    Attributes:
        required: arguments without a default, in order.
        unwritten: whether it is a stub that only raises NotImplementedError.
        line: of the `raise` in a stub, else of the function.
    """

    file: Path
    name: str
    required: tuple[str, ...]
    unwritten: bool
    line: int


def find(folders: Sequence[Path], names: Sequence[str]) -> Factory | None:
    """The first factory with one of these names in the folders' Python files, by folder, then by name; None if there
    is none."""
    for folder in dict.fromkeys(one.resolve() for one in folders):
        found = {factory.name: factory for file in _files(folder) for factory in _factories(file)}
        for name in names:
            if name in found:
                return found[name]
    return None


def _files(folder: Path) -> list[Path]:
    """The Python files of a folder; model.py is last, so that its function wins over others of the same name."""
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
