"""A folder of data sets, which is none itself: what stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.data import open_inputs
from ensemble_distill.data.folders import is_saved, is_sharded
from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.several import held
from ensemble_distill.errors import EdistillError

# what folders of splits are commonly called
SPLITS = frozenset({"train", "training", "validation", "val", "valid", "test", "testing", "calibration"})


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, hidden files and Python's caches aside; nothing where it cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")))
    except OSError:  # no folder, or none to read: told where it is opened
        return []


def holds_splits(folder: Path) -> bool:
    """Whether image folders called as splits are stand in it: read as one image folder, they would be its classes."""
    folders = [entry for entry in entries(folder) if entry.is_dir()]
    return any(entry.name in SPLITS for entry in folders) and not any(map(holds_pictures, [folder, *folders]))


def data_sets(folder: Path, task: str) -> dict[str, dict[str, Any]]:
    """Each data set in a folder that says by itself what it is, and those one folder below, by their paths in it: an
    `.npz`, a folder of images or of tar shards, a saved data set.

    Returns:
        their rows, what those are, the classes' names (None without), and whether there are labels; or under
        "problem" why one cannot be read.
    """
    below = [entries(entry) if entry.is_dir() and not is_set(entry) else [entry] for entry in entries(folder)]
    sets = [one for some in below for one in some if one.suffix == ".npz" or is_set(one)]
    return {one.relative_to(folder).as_posix(): _told(one, task) for one in sets}


def _told(one: Path, task: str) -> dict[str, Any]:
    try:
        source = open_inputs([str(one)], task)
    except EdistillError as error:
        return {"problem": str(error)}
    classes = None if source.classes is None else list(source.classes)
    return {"rows": len(source), "holds": held(source), "classes": classes, "labels": source.labels is not None}


def is_set(folder: Path) -> bool:
    """Whether it is a data set as a whole."""
    return is_saved(folder) or is_sharded(folder) or is_image_folder(folder)


def is_image_folder(folder: Path) -> bool:
    """Whether there are pictures in it or in a folder of it, as of classes."""
    return holds_pictures(folder) or any(holds_pictures(entry) for entry in entries(folder) if entry.is_dir())


def holds_pictures(folder: Path) -> bool:
    """Whether pictures stand in it, not in folders of it."""
    return any(is_image(entry.name) and entry.is_file() for entry in entries(folder))
