"""Every write and removal of the project: whole or absent, and never through a link to another place.

A file is written beside its target under an unpredictable name, flushed to disk and renamed over the target; then the
folder is synced. `crash_point` is called around each of these steps; tests replace it to stop there.

What lies below a folder that the user named is written and removed with that folder as `within`: see `refuse_outside`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ensemble_distill.errors import EdistillError

TEMPORARY = ".part"
LOCK = ".lock"  # in every folder that is written to; see `runtime/lock.py`
SYNCS = 16  # files synced at once
Content = bytes | Iterable[bytes | memoryview]  # of a file, whole or in pieces
DOCUMENT = 1 << 28  # largest JSON document, in bytes; the manifest of a million records has half of that
_PREFIX = ".edistill-"


def _no_crash(step: str, path: Path) -> None:
    """Called before and after each step of a write; does nothing outside tests."""


crash_point: Callable[[str, Path], None] = _no_crash


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; systems that cannot open folders (Windows) need no sync."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        os.close(descriptor)


def write_whole(
    path: Path,
    content: Content,
    *,
    within: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file so that `path` holds all of the new bytes or the old state, whenever the process dies.

    A link at `path` is replaced, not followed; `write_output` follows it, for files that the user named.

    Args:
        within: the folder, named by the user, that `path` lies below.
        check: called with the written file before it is renamed; if it raises, `path` keeps its old state.

    Raises:
        EdistillError: a link leads out of `within`, or `within` no longer exists.
    """
    write_all([(path, content)], within=within, check=check)


def write_all(
    files: Iterable[tuple[Path, Content]],
    *,
    within: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write several files, each as `write_whole` does; syncing them together takes far less time."""
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in files:
            if within is not None:
                _refuse_removed(within)
                refuse_outside(within, path)
            make_folder(path.parent)
            crash_point("before write", path)
            temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{TEMPORARY}")
            written.append((temporary, path))
            with _named(path, temporary):
                _write(temporary, [content] if isinstance(content, bytes) else content)
            crash_point("before sync", path)
        _sync(written)
        for temporary, path in written:
            if check is not None:
                check(temporary)
            crash_point("before rename", path)
            with _named(path, temporary):
                temporary.replace(path)
            crash_point("after rename", path)
    except (Exception, KeyboardInterrupt):
        for temporary, _ in written:
            with suppress(OSError):  # what went wrong first is what the user has to know
                temporary.unlink(missing_ok=True)
        raise
    for folder in dict.fromkeys(path.parent for _, path in written):
        sync_folder(folder)


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    # O_EXCL refuses anything already there, such as a link planted to have its target overwritten
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(descriptor, "wb") as file:  # noqa: PTH123, of a descriptor
        for chunk in chunks:
            file.write(chunk)


def _sync(written: Sequence[tuple[Path, Path]]) -> None:
    def one(pair: tuple[Path, Path]) -> None:
        with _named(pair[1], pair[0]), pair[0].open("r+b") as file:
            os.fsync(file.fileno())

    if len(written) == 1:
        one(written[0])
        return
    with ThreadPoolExecutor(SYNCS) as threads:
        list(threads.map(one, written))


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Name the target, which the user knows, in the system's errors; a full disk reports no file at all."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for libraries that only read or write files; it is removed with its content."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        yield Path(folder)


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named, whole or absent; a link's target is written.

    Anything that is not a regular file, such as a named pipe, is written to in place. So is /dev/stdout, whatever it
    leads to: the shell may have more to write there.
    """
    if (descriptor := _open_descriptor(path)) is not None:
        with open(os.dup(descriptor), "wb") as file:  # noqa: PTH123, of a descriptor
            file.write(content)
        return
    target = real(path)
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            file.write(content)
        return
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    write_whole(target, content)
    if mode is not None:
        target.chmod(mode)


def append_line(path: Path, line: str, *, within: Path) -> None:
    """Append a line to a file that others may be reading; a crash can leave the last line incomplete.

    Raises:
        EdistillError: a link leads out of `within`.
    """
    refuse_outside(within, path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(descriptor, "ab") as file:  # noqa: PTH123, of a descriptor
        file.write(f"{line}\n".encode())


def is_stream(path: Path) -> bool:
    """Whether writing there passes the bytes on and replaces nothing: a pipe, a terminal, /dev/stdout."""
    return _open_descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _open_descriptor(path: Path) -> int | None:
    """The file descriptor that /dev/fd/N, /proc/self/fd/N, /dev/stdout or /dev/stderr names; None for any other
    path."""
    named = {"/dev/stdout": 1, "/dev/stderr": 2}
    number = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d{1,9})", str(path))
    return int(number[1]) if number else named.get(str(path))


def real(path: Path) -> Path:
    """The path with all links resolved; for a circle of links, one of them."""
    return Path(os.path.realpath(path))


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse to write or remove a path that lies below a folder by name but, through a link, elsewhere.

    Raises:
        EdistillError: the resolved folder of `path` is not below `folder`.
    """
    there = real(path.parent)
    if not there.is_relative_to(real(folder)):
        raise EdistillError(
            f"{path} lies in {there}, since a link leads out of {folder}, and nothing is written or removed there. "
            "Remove the link, or put the folder that it leads to in its place."
        )


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist."""
    path.mkdir(parents=True, exist_ok=True)


def _refuse_removed(folder: Path) -> None:
    if not folder.is_dir():
        raise EdistillError(f"{folder} was removed while it was written to. Run the command again.")


def remove_file(path: Path, within: Path) -> None:
    """Remove a file, or a link in its place, if there is one.

    Raises:
        EdistillError: see `refuse_outside`.
    """
    refuse_outside(within, path)
    path.unlink(missing_ok=True)


def remove_tree(path: Path, within: Path) -> None:
    """Remove a folder and its content, or whatever has its name; of a link only the link is removed, not its target.

    Raises:
        EdistillError: see `refuse_outside`.
    """
    refuse_outside(within, path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_special(path: str | Path) -> None:
    """Refuse to read a pipe, device or socket: one blocks until its other end opens, another never ends.

    Raises:
        EdistillError: `path` exists and is neither a file nor a folder.
    """
    if is_special(path):
        raise EdistillError(f"{path} is neither a file nor a folder, but a pipe, a device or a socket. Give a file.")


def read_whole(path: Path, most: int | None = None) -> bytes:
    """The bytes of a file that is read into memory as a whole.

    Args:
        most: the most bytes such a file can have; None for the size of the machine's memory.

    Raises:
        ValueError: it is a pipe, device or socket, or larger than `most`; nothing is allocated for it.
        OSError: it cannot be read.
    """
    refuse_endless(path)
    with path.open("rb") as file:
        size, most = os.fstat(file.fileno()).st_size, memory() if most is None else most
        if size > most:
            raise ValueError(f"it has {size:,} bytes, and {most:,} are read at most")
        return file.read(size)  # allocates exactly that many bytes


def refuse_endless(path: Path) -> None:
    """Raise ValueError if one of the project's own files is a pipe, device or socket; see `refuse_special`."""
    if is_special(path):
        raise ValueError("it is not a file, but a pipe, a device or a socket")


def memory() -> int:
    """Bytes of memory of the machine; 2⁶³ − 1 where the system does not report it (Windows)."""
    if not hasattr(os, "sysconf"):
        return 2**63 - 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_special(path: str | Path) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112, PTH113


def is_temporary(path: Path) -> bool:
    """Whether the name is that of a temporary file, which only a killed writer leaves behind."""
    return path.name.startswith(_PREFIX) and path.name.endswith(TEMPORARY)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody else is writing to; links are not followed.

    Subfolders with a lock of their own are skipped, since a writer may be at work there.
    """
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not Path(here, name, LOCK).exists()]
        for name in names:
            if is_temporary(Path(here, name)):
                Path(here, name).unlink(missing_ok=True)


def write_text(path: Path, text: str, *, within: Path | None = None) -> None:
    write_whole(path, text.encode(), within=within)


def clear_folder(folder: Path, names: Sequence[str], last: str) -> None:
    """Remove the named files and folders and nothing else; `last` goes at the end, since it identifies a half-empty
    folder as one of the project's."""
    for name in sorted(names, key=lambda name: name == last):
        remove_tree(folder / name, within=folder)


def sha256_file(path: Path) -> str:
    """The sha256 of a file.

    Raises:
        ValueError: it is a pipe, device or socket, which may never end.
    """
    refuse_endless(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
