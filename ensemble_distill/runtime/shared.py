"""Making sure that all processes read the same: files of a shared folder, where another machine's writes may appear
late, and the values they all depend on."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import sha256_file

LOOK_EVERY = 0.25  # seconds between two looks
LATE = 90.0  # seconds after which a file that another machine wrote must be visible: NFS caches folders for 60
SHARED = "Set output.cache to a folder that all machines share."
SHOWN = 60  # characters of a value in a message


def is_seen(there: Callable[[], bool]) -> bool:
    """Whether something is there, now or within `LATE` seconds."""
    until = time.monotonic() + LATE
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_EVERY)
    return True


def unseen(what: str, folder: Path) -> EdistillError:
    """The error for files that do not appear in a cache."""
    return EdistillError(f"{what} are written, but cannot be seen in {folder}. {SHARED}")


def unseen_here(folder: Path, writers: str) -> EdistillError:
    """The error for files that this process does not see."""
    rank = ranks.current()
    return EdistillError(
        f"Process {rank.index} of {rank.world} does not see in {folder} what {writers} wrote there. {SHARED}"
    )


def see_as_first(paths: Iterable[Path], whole: bool = True) -> None:
    """Wait until every process sees these files as the first one does.

    Every rank must call it with its own paths of the same files, before any rank changes them.

    Args:
        whole: compare the files' content; otherwise only their sizes, which reads nothing.

    Raises:
        EdistillError: for longer than `LATE` seconds, a process sees another file, or one where the first sees none.
    """
    if not ranks.several():
        return
    own, look = list(paths), digest_or_reason if whole else _size
    noted = ranks.of_first(lambda: [look(path) for path in own])

    def other() -> tuple[Path, str, str] | None:
        both = ((path, look(path), first) for path, first in zip(own, noted, strict=True))
        return next((found for found in both if found[1] != found[2]), None)

    if not is_seen(lambda: other() is None) and (found := other()) is not None:
        path, here, first = found
        raise EdistillError(
            f"{_named(ranks.current().index)} sees {_told(here)} at {path}, and the first one {_told(first)}. Name a "
            "folder that all machines share, or restore the file."
        )
    ranks.wait()


def refuse_differing(known: Mapping[str, object]) -> None:
    """Refuse to continue if any process has other values than the first one; every rank must call it.

    Args:
        known: values by their names in messages; a name that a process lacks counts as "".

    Raises:
        EdistillError: a value differs; every process raises the same error.
    """
    host = socket.gethostname()
    first, *others = ranks.of_each((host, {name: str(value) for name, value in known.items()}))
    for index, (where, found) in enumerate(others, 1):
        for name in dict.fromkeys([*first[1], *found]):
            here, there = (values.get(name, "") for values in (found, first[1]))
            if here != there:
                own, wanted = told_apart(here, there)
                raise EdistillError(
                    f"{_named(index, where)} has {name} {own}, and the first one (on {first[0]}) has {wanted}. Start "
                    "all with the same command, in a folder that all machines share or in equal copies of it."
                )


def _named(index: int, host: str | None = None) -> str:
    return f"Process {index} of {ranks.current().world} (on {host or socket.gethostname()})"


def digest_or_reason(path: Path) -> str:
    """The sha256 of a file, "" if there is none, or the name of the error if it cannot be read."""
    return _looked(path, partial(sha256_file, path))


def _size(path: Path) -> str:
    return _looked(path, lambda: f"{path.stat().st_size:,} bytes")


def _looked(path: Path, look: Callable[[], str]) -> str:
    try:
        return look()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:  # a folder, a pipe, or no permission to read
        return type(error).__name__


def told_apart(here: str, there: str) -> tuple[str, str]:
    """Two values for a message; of long ones, the part where they differ."""
    alike = next((at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    at = max(0, alike - SHOWN // 3)
    if at == 0 or max(len(here), len(there)) <= SHOWN:
        return _told(here), _told(there)
    return f"…{_told(here[at:])}", f"…{_told(there[at:])}"


def _told(found: str) -> str:
    """A value for a message; of a digest or a long text, its beginning."""
    if re.fullmatch(r"[0-9a-f]{64}", found):
        return f"{found[:12]}…"
    return (found if len(found) <= SHOWN else f"{found[: SHOWN - 1]}…") or "nothing"
