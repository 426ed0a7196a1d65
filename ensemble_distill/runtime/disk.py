"""Free disk space, and whether anything may be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ensemble_distill.errors import EdistillError


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def refuse_unwritable(folder: Path, key: str) -> None:
    """Raise EdistillError if nothing may be written to a folder, which need not exist yet.

    Args:
        key: the setting that names it.
    """
    there = _existing(folder)
    if not os.access(there, os.W_OK):
        raise EdistillError(
            f"{key} is {folder}, and nothing may be written to {there}. Permit that, or set {key} to another folder."
        )


def _existing(folder: Path) -> Path:
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
