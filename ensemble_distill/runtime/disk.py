"""Free disk space, and whether a folder can be made and written to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ensemble_distill.errors import EdistillError


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def refuse_no_folder(folder: Path, key: str) -> None:
    """Raise EdistillError if there is a file, or a link to nothing, in the place of a folder or of one above it.

    Args:
        key: the setting that names it.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if there.is_symlink() and not there.exists():
        raise EdistillError(
            f"{there} is a link to {there.readlink()}, where nothing is, and {key} needs a folder. Make it or mount "
            "its disk, or name another folder."
        )
    if not there.is_dir():
        raise EdistillError(f"{there} is a file, and {key} needs a folder. Name another.")


def refuse_unwritable(folder: Path, key: str) -> None:
    """Raise EdistillError if nothing may be written to a folder, which need not exist yet, or if it cannot be made.

    Args:
        key: the setting that names it.
    """
    refuse_no_folder(folder, key)
    there = _existing(folder)
    if not os.access(there, os.W_OK):
        raise EdistillError(
            f"{key} is {folder}, and nothing may be written to {there}. Permit that, or set {key} to another folder."
        )


def _existing(folder: Path) -> Path:
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
