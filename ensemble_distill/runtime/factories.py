"""Loading what users write themselves: `file.py:factory` or `package.module:factory`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ensemble_distill.errors import EdistillError


def is_factory(text: str) -> bool:
    """Whether the text is written `file.py:factory` or `package.module:factory`; nothing is looked up."""
    place, _, name = text.rpartition(":")
    return name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", place) is not None)


def load_factory(spec: str, what: str) -> Callable[..., Any]:
    """The callable that `spec` names. A relative `file.py` starts at the working folder.

    The folder of a file can be imported from while the file is imported and while the factory runs, so a user
    may split code over several files. The same file is imported once, however often it is asked for.

    Args:
        spec: `file.py:factory` or `package.module:factory`.
        what: the setting it came from, for messages: "data.train".

    Raises:
        EdistillError: the spec, file, module or attribute is wrong, or importing it raises. The callable
            itself raises one for anything the factory raises, which stays chained to it.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise EdistillError(f"{what} is {spec!r}. Write file.py:factory or package.module:factory.")
    folder = None
    if place.endswith(".py"):
        file = Path(place).expanduser().resolve()
        folder = file.parent
        if not file.is_file():
            raise EdistillError(f"{what} is {spec!r}, but there is no file {file}. Mend the path.")
    with _importable(folder):
        try:
            module = importlib.import_module(place) if folder is None else _import_file(file)
        except Exception as error:
            hint = "" if folder else f" If it is a file, write {place.replace('.', '/')}.py:{name}."
            told = f"importing {place} raised {_told(error)}."
            raise EdistillError(f"{what} is {spec!r}: {told}{hint}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise EdistillError(f"{what} is {spec!r}, but {place} has no callable {name}. {_offers(module)}")

    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _importable(folder):
            try:
                return factory(*args, **kwargs)
            except EdistillError:
                raise
            except Exception as error:
                shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
                raise EdistillError(f"{what} is {spec!r}: {name}({shown}) raised {_told(error)}.") from error

    return call


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _import_file(file: Path) -> ModuleType:
    """The module of a file, under a name no other file can have."""
    name = f"_edistill_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _offers(module: ModuleType) -> str:
    callables = {name: value for name, value in vars(module).items() if callable(value) and name[0] != "_"}
    own = [name for name, value in callables.items() if getattr(value, "__module__", "") == module.__name__]
    return f"It defines {', '.join(own)}." if own else "It defines no function or class."
