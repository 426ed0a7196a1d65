"""Imports of users' files from the folders that these lie in, with folders kept apart.

Two projects may both have a `utils.py` or a package `models`, and Python keeps one module of a name. A file gets those
of its own folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_names: dict[str, set[str]] = {}  # by folder, the first parts of the names of modules that were imported from it
_aside: dict[str, dict[str, ModuleType]] = {}  # by folder, its modules whose names are another folder's meanwhile


@contextmanager
def importable(before: Sequence[str], after: Sequence[str] = ()) -> Iterator[None]:
    """Let modules be imported from some folders: from `before` ahead of installed packages, from `after` behind them.

    What was imported from a folder stays imported; a module of that name in one of `before` is another one.
    """
    others = {name for folder in _names if folder not in before for name in _names[folder] if _has(before, name)}
    taken = _taken_out(others)
    for folder in before:
        sys.modules.update(_aside.get(folder, {}))
    known = set(sys.modules)
    sys.path[:0] = before
    sys.path += after
    try:
        yield
    finally:
        for entry in before:
            if entry in sys.path:
                sys.path.remove(entry)
        for entry in after:
            if entry in sys.path:  # the last occurrence: the folder may have been on the path before
                del sys.path[len(sys.path) - 1 - sys.path[::-1].index(entry)]
        for name in {_first(name) for name in sys.modules if name not in known}:
            if (home := _folder_of(name, before)) is not None:
                _names.setdefault(home, set()).add(name)
        for folder in before:
            own = {name for name in others if _folder_of(name, before) == folder}
            _aside[folder] = {**_aside.get(folder, {}), **_taken_out(own)}
        sys.modules.update(taken)


def _has(folders: Sequence[str], name: str) -> bool:
    return any((Path(folder) / f"{name}.py").is_file() or (Path(folder) / name).is_dir() for folder in folders)


def _first(name: str) -> str:
    return name.partition(".")[0]


def _folder_of(name: str, folders: Sequence[str]) -> str | None:
    """Which of the folders holds the loaded module or package of this name; None if it is from elsewhere."""
    module = sys.modules.get(name)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    parents = {str(Path(place).parent) for place in places if place}
    return next((folder for folder in folders if folder in parents), None)


def _taken_out(names: set[str]) -> dict[str, ModuleType]:
    """The loaded modules of these names, and all inside them, which are no longer loaded."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _first(name) in names}
