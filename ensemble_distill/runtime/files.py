"""Every write of the project: whole or absent.

A file is written beside its place under a temporary name, flushed to disk, renamed over it, and the folder is
synced. `crash_point` is called around each of those steps; tests replace it to stop there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

TEMPORARY = ".part"


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
    """Write a file so that, whenever the process dies, `path` holds the old bytes or all the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    chunks = [content] if isinstance(content, bytes) else content
    crash_point("before write", path)
    with temporary.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        crash_point("before sync", path)
        file.flush()
        os.fsync(file.fileno())
    crash_point("before rename", path)
    temporary.replace(path)
    crash_point("after rename", path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def write_json(path: Path, record: Any) -> None:
    """JSON for people and programs: indented, in the order given, NaN refused."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
