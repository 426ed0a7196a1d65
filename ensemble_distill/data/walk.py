"""Files below a folder, each directory once, wherever links lead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import is_special

Place = tuple[int, int]  # a directory's device and inode


def place(folder: str | Path) -> Place:
    """Raises EdistillError when it cannot be read."""
    try:
        found = os.stat(folder)  # noqa: PTH116, a link's target
    except OSError as error:
        raise unlisted(error) from error
    return found.st_dev, found.st_ino


def files_below(folders: Sequence[Path], seen: set[Place]) -> tuple[list[list[tuple[str, list[str]]]], list[str]]:
    """For each folder the directories in it, itself included, by their path, with the names of their files, in order.
    And all directories that were passed over, since they lead to others of the walk, or to what was `seen` before.

    Links to files and to other directories are followed. Directories of any of the folders come before links to them.

    Raises:
        EdistillError: a directory cannot be listed.
    """
    seen |= {place(folder) for folder in folders}
    walked: list[list[tuple[str, list[str]]]] = [[] for _ in folders]
    passed: list[str] = []
    waiting = [(at, str(folder)) for at, folder in enumerate(folders)]
    links: list[tuple[int, str]] = []
    while waiting:
        at, here = waiting.pop(0)
        directories, linked, files = _listed(here)
        walked[at].append((here, files))
        links += [(at, link) for link in linked]
        found = [(at, directory) for directory in directories]
        while found or (links and not waiting):
            one = found.pop(0) if found else links.pop(0)
            if (where := place(one[1])) in seen:
                passed.append(one[1])
            else:
                seen.add(where)
                waiting.append(one)
    return [sorted(of) for of in walked], sorted(passed)


def _listed(folder: str) -> tuple[list[str], list[str], list[str]]:
    """Directories and links to some, by path, and names of files, each in order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unlisted(error) from error
    kinds: tuple[list[str], list[str], list[str]] = ([], [], [])
    for entry in found:
        if not is_directory(entry):
            if not is_pipe(entry):
                kinds[2].append(entry.name)
        else:
            kinds[1 if entry.is_symlink() else 0].append(entry.path)
    return kinds


def there(path: str | Path) -> bool:
    """Whether something is at a path; False for a text that can be none, such as one too long."""
    return os.path.exists(path)  # noqa: PTH110, since Path's raises for such


def is_folder(path: str | Path) -> bool:
    """Whether a folder is at a path; False for a text that can be none, such as one too long."""
    return os.path.isdir(path)  # noqa: PTH112


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Links followed; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_pipe(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, a device or a socket, which holds no image whatever its name, and may never end."""
    try:
        return not entry.is_file() and is_special(entry.path)
    except OSError:
        return False


def unlisted(error: OSError) -> EdistillError:
    return EdistillError(f"{error.filename} cannot be listed: {error.strerror}. Restore it, or make it readable.")
