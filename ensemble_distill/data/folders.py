"""Recognizes what kind of data set a folder is, by the files in it."""

from __future__ import annotations

import os
from pathlib import Path

from ensemble_distill.data.walk import there, unlisted
from ensemble_distill.runtime.files import refuse_endless, refuse_special
from ensemble_distill.runtime.names import natural_key

STATE = "state.json"  # in a data set that the library `datasets` saved
INFO = "dataset_info.json"
SHARD = ".tar"
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
OF_SPLITS = "dataset_dict.json"  # beside several such data sets, each in a folder of its own


def is_saved(folder: str | Path) -> bool:
    """Whether the library `datasets` saved the folder: a data set, or several splits of one."""
    here = Path(folder)
    return there(here / OF_SPLITS) or (there(here / STATE) and there(here / INFO))


def is_sharded(folder: str | Path) -> bool:
    """Whether a folder holds tar archives, and neither folders nor pictures, which would make it a folder of images.

    Weights called `.pth.tar` are not tar archives.
    """
    try:
        with os.scandir(folder) as found:
            names = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except (OSError, ValueError):  # no folder, or a text that cannot be a path
        return False
    first = next((name for name, inside in sorted(names) if name.endswith(SHARD) and not inside), None)
    if first is None or any(inside or name.lower().endswith(PICTURES) for name, inside in names):
        return False
    return is_archive(Path(folder) / first)


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar archive does."""
    try:
        refuse_endless(path)
        with path.open("rb") as file:
            return b"ustar" in file.read(512)[257:263]
    except (OSError, ValueError):
        return False


def shards_in(folder: str | Path) -> list[Path]:
    """A folder's tar archives in natural order, s-2 before s-10.

    Raises:
        EdistillError: the folder cannot be listed, or an archive is not a regular file.
    """
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if entry.name.endswith(SHARD) and entry.name[0] != "."]
    except OSError as error:
        raise unlisted(error) from error
    shards = [Path(folder) / name for name in sorted(names, key=natural_key)]
    for shard in shards:
        refuse_special(shard)
    return shards
