"""Loading user code, written as `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.runtime.files import read_whole
from ensemble_distill.runtime.own import told_as_own
from ensemble_distill.runtime.own_imports import importable


def is_factory(text: str) -> bool:
    """Whether the text has the form `file.py:factory` or `package.module:factory`; nothing is looked up."""
    place, _, name = text.rpartition(":")
    return name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", place) is not None)


def portable(spec: str) -> str:
    """The factory's spec without the folder of its file, for records that move between machines."""
    file, colon, factory = spec.rpartition(":")
    return f"{Path(file).name}:{factory}" if colon and file.endswith(".py") else spec


def load_factory(spec: str, what: str) -> Callable[..., Any]:
    """The callable that `spec` names; a relative `file.py` is resolved against the working folder.

    The folder of a file is importable while the file is imported and while the factory runs, so that users can split
    code over several files. A file with relative imports is imported as part of its package, whose parent folder is
    importable too. A package that is not installed is looked up in the working folder. Each file is imported once, and
    gets the modules of its own folder even if another file's folder has others of the same names.

    Args:
        spec: `file.py:factory` or `package.module:factory`.
        what: the setting it came from, for messages: "data.train".

    Raises:
        EdistillError: the spec, file, module or attribute is wrong, or the import raises. The returned callable raises
            one, chained to the cause, for anything the factory raises.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise EdistillError(f"{what} is {spec!r}. Write file.py:factory or package.module:factory.")
    file = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise EdistillError(f"{what} is {spec!r}, but there is no file {file}. Fix the path.")
    with _importable(file):
        try:
            module = importlib.import_module(place) if file is None else _import_file(file)
        except Exception as error:
            hint = "" if file else f" If it is a file, write {place.replace('.', '/')}.py:{name}."
            told = f"importing {place} raised {quoted(error)}."
            raise EdistillError(f"{what} is {spec!r}: {told}{hint}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise EdistillError(f"{what} is {spec!r}, but {place} has no callable {name}. {_offers(module)}")

    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        with _importable(file), told_as_own(f"{what} is {spec!r}: {name}({shown})"):
            return factory(*args, **kwargs)

    return call


def _importable(file: Path | None) -> AbstractContextManager[None]:
    """Make the folders of the file and its package importable; without a file, the working folder."""
    if file is None:
        return importable([], [str(Path.cwd())])
    package = _package(file)
    return importable([str(file.parent), *([] if package is None else [str(package.parent)])])


def _import_file(file: Path) -> ModuleType:
    """The module of a file, under a name that no other file can have."""
    package = _package(file)
    if package is None:
        return _import_as(_own_name(file), file)
    parts = [part for part in file.relative_to(package).with_suffix("").parts if part != "__init__"]
    name = _own_name(package)
    _import_as(name, package / "__init__.py", package)
    return importlib.import_module(".".join([name, *parts]))


def _own_name(path: Path) -> str:
    return f"_edistill_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"


def _import_as(name: str, file: Path, package: Path | None = None) -> ModuleType:
    """Import a file as a module, or as a package, under the given name; a package without `__init__.py` is an empty
    module."""
    if name in sys.modules:
        return sys.modules[name]
    inside = None if package is None else [str(package)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, since dataclasses and pickle look their module up there
    try:
        if package is None or file.is_file():
            spec.loader.exec_module(module)
    except BaseException:
        for loaded in [other for other in sys.modules if other == name or other.startswith(f"{name}.")]:
            del sys.modules[loaded]
        raise
    return module


def _package(file: Path) -> Path | None:
    """The folder of the outermost package if the file has relative imports, else None."""
    try:
        tree = ast.parse(read_whole(file))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None  # the import reports what is wrong
    levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    if not levels:
        return None
    top = file.parents[min(max(levels), len(file.parents)) - 1]
    while (top / "__init__.py").is_file() and (top.parent / "__init__.py").is_file():
        top = top.parent
    return top


def _offers(module: ModuleType) -> str:
    callables = {name: value for name, value in vars(module).items() if callable(value) and name[0] != "_"}
    own = [name for name, value in callables.items() if getattr(value, "__module__", "") == module.__name__]
    return f"It defines {', '.join(own)}." if own else "It defines no function or class."
