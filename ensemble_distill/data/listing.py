"""Finds the data sets in a folder that is not one itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.data import open_inputs
from ensemble_distill.data.folders import is_saved, is_sharded
from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.several import held
from ensemble_distill.errors import EdistillError

# common names for the folders of splits
SPLITS = frozenset({"train", "training", "validation", "val", "valid", "test", "testing", "calibration"})


def entries(folder: Path) -> list[Path]:
    """A folder's entries, sorted, without hidden ones and those that begin with `__`; [] if it cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")))
    except OSError:  # reported where the folder is opened
        return []


def holds_splits(folder: Path) -> bool:
    """Whether a folder holds folders named after splits, and no pictures beside or directly in its folders.

    Read as one image folder, it would take those splits for classes.
    """
    folders = [entry for entry in entries(folder) if entry.is_dir()]
    return any(entry.name in SPLITS for entry in folders) and not any(map(holds_pictures, [folder, *folders]))


def data_sets(folder: Path, task: str) -> dict[str, dict[str, Any]]:
    """The data sets in a folder and one folder below that need no declaration, by their relative paths.

    Those are `.npz` files, folders of images or of tar shards, and saved data sets.

    Returns:
        for each data set: "rows"; "holds", what a row is; "classes", their names or None; "labels", whether there are
        any. Or only "problem": why it cannot be read.
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
    """Whether a folder as a whole is one data set."""
    return is_saved(folder) or is_sharded(folder) or is_image_folder(folder)


def is_image_folder(folder: Path) -> bool:
    """Whether pictures lie in a folder or directly in one of its folders, as those of classes do."""
    return holds_pictures(folder) or any(holds_pictures(entry) for entry in entries(folder) if entry.is_dir())


def holds_pictures(folder: Path) -> bool:
    """Whether pictures lie directly in a folder."""
    return any(is_image(entry.name) and entry.is_file() for entry in entries(folder))
