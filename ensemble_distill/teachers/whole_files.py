"""Hash members that are single files, and refuse those that changed after they were listed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.teachers.weights import refuse_pointer

PIECE = 1 << 20


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes; raises EdistillError if it cannot be read or is a Git LFS pointer."""
    refuse_pointer(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def refuse_changed(path: Path, listed: str, found: str) -> None:
    """Raise EdistillError for a file that has changed since its folder was listed."""
    if found != listed:
        raise EdistillError(
            f"{path} has changed since it was listed: it was {listed[:12]}…, now {found[:12]}…. Run the command again "
            "when nothing writes to the teachers."
        )
