"""Every write of the project: whole or absent, and never through a link to somewhere else.

A file is written beside its place under a name that nobody can foresee, flushed to disk, renamed over it, and the
folder is synced. `crash_point` is called around each of those steps; tests replace it to stop there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.names import harmless_json

TEMPORARY = ".part"
_PREFIX = ".edistill-"


def _no_crash(step: str, path: Path) -> None:
    """Called before and after each step of a write; does nothing outside tests."""


crash_point: Callable[[str, Path], None] = _no_crash


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; a system that cannot open folders (Windows) does so by itself."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that, whenever the process dies, `path` holds the old bytes or all the new ones.

    A link at `path` is replaced, not followed: see `write_output` for files that a user named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{TEMPORARY}")
    chunks = [content] if isinstance(content, bytes) else content
    crash_point("before write", path)
    try:
        # refuses what is there already, also a link that somebody put there to have its target overwritten
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with open(descriptor, "wb") as file:  # noqa: PTH123, of a descriptor
            for chunk in chunks:
                file.write(chunk)
            crash_point("before sync", path)
            file.flush()
            os.fsync(file.fileno())
        crash_point("before rename", path)
        temporary.replace(path)
    except (Exception, KeyboardInterrupt) as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # what the user knows of; a full disk names no file at all
        raise
    crash_point("after rename", path)
    sync_folder(path.parent)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that a user named: whole or absent; where a link is, what it points to.

    What is no regular file, such as /dev/stdout or a named pipe, is written to and stays.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            file.write(content)
        return
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    write_whole(target, content)
    if mode is not None:
        target.chmod(mode)


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse to write or remove what lies below a folder by name, and elsewhere by a link on the way.

    Raises:
        EdistillError: the folder of `path` is not below `folder`.
    """
    real = path.parent.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise EdistillError(
            f"{path} would be written in {real}, since a link leads out of {folder}. Remove the link, or name the real "
            "folder in edistill.toml."
        )


def is_temporary(path: Path) -> bool:
    """Whether a file is one that a killed writer left: no one's."""
    return path.name.startswith(_PREFIX) and path.name.endswith(TEMPORARY)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left anywhere in a folder that nobody else is writing to; links are not followed."""
    for here, _, names in os.walk(folder):
        for name in names:
            if is_temporary(Path(here, name)):
                Path(here, name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def json_text(record: Any, *, only_ascii: bool = False, default: Callable[[Any], Any] | None = None) -> str:
    """JSON for people and programs: indented, in the order given, NaN refused; safe to show, as any UTF-8 to write."""
    text = json.dumps(record, indent=2, ensure_ascii=only_ascii, allow_nan=False, default=default)
    return harmless_json(text) + "\n"


def write_json(path: Path, record: Any) -> None:
    write_text(path, json_text(record))


def clear_folder(folder: Path, names: Sequence[str], last: str) -> None:
    """Remove the named files and folders and nothing else, `last` at the end: by it a folder left half empty is still
    known as ours."""
    for name in sorted(names, key=lambda name: name == last):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested too deeply to be read.
        OSError: it cannot be read.
    """
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """What a JSON text says. Raises ValueError when it is none, no UTF-8, or nested too deeply to be read."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
