"""Walks the files below folders, each directory once, wherever links lead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import is_special

Place = tuple[int, int]  # a directory's device and inode


def place(folder: str | Path) -> Place:
    """A directory's place, links followed. Raises EdistillError if it cannot be read."""
    try:
        found = os.stat(folder)  # noqa: PTH116, a link's target
    except OSError as error:
        raise unlisted(error) from error
    return found.st_dev, found.st_ino


def files_below(folders: Sequence[Path], seen: set[Place]) -> tuple[list[list[tuple[str, list[str]]]], list[str]]:
    """The files below each folder, and the directories that were passed over.

    Links to files and directories are followed. A directory that was seen before is passed over. Directories inside
    the folders count as seen before links to them do.

    Args:
        folders: where to walk.
        seen: directories that were walked before; those of this walk are added in place.

    Returns:
        for each folder, (path, names of files) of itself and of every directory below it, sorted; and the paths of the
        directories passed over, sorted.

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
    """The paths of directories, the paths of links to directories, and the names of files, each sorted."""
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
    """Whether something is at a path; False for a text that cannot be a path, such as one too long."""
    return os.path.exists(path)  # noqa: PTH110, Path.exists raises for such a text


def is_folder(path: str | Path) -> bool:
    """Whether a folder is at a path; False for a text that cannot be a path, such as one too long."""
    return os.path.isdir(path)  # noqa: PTH112


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a directory or a link to one; False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_pipe(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a pipe, a device or a socket, which holds no image whatever its name and may never end."""
    try:
        return not entry.is_file() and is_special(entry.path)
    except OSError:
        return False


def unlisted(error: OSError) -> EdistillError:
    return EdistillError(f"{error.filename} cannot be listed: {error.strerror}. Restore it, or make it readable.")
