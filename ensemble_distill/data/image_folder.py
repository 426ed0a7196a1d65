"""Folders of images: class folders as torchvision reads them, or one flat folder without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble_distill.data.decoding import read_image
from ensemble_distill.data.digests import folder_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.folders import PICTURES, is_saved, is_sharded
from ensemble_distill.data.pictures import Pictures
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.walk import files_below, is_directory, is_folder, is_pipe, place, unlisted
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks import Task

EXTENSIONS = PICTURES


class ImageFolder(Pictures):
    """Image files as rows.

    Args:
        root: the folder that the names are relative to.
        names: one file a row, with "/" between folders.
        labels, classes, remarks: see `Pictures`.

    Attributes:
        mend: what to do about a file that does not decode.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Array | None = None,
        classes: tuple[str, ...] | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        super().__init__(len(names), labels, classes, remarks)
        self.mend = "Replace the file, or remove it; rows after it then move up"
        self.root, self.names = root, tuple(names)

    def name(self, row: int) -> str:
        return self.names[row]

    def _decoded(self, row: int) -> Array:
        with (self.root / self.names[row]).open("rb") as file:
            return read_image(file)

    def _undecodable(self, row: int, error: Exception) -> str:
        path = self.root / self.names[row]
        return f"{path} (row {row}) does not decode: {error}. {self.mend}, so a cache made before no longer fits."

    def _digested(self) -> tuple[str, str]:
        return folder_digest(self.root, self.names, self.labels, self.classes)


def claims(source: str) -> bool:
    return is_folder(source) and not is_saved(source) and not is_sharded(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The folder's images: classes and their files sorted lexicographically, nested folders included.

    Without class folders the images have no labels.

    Raises:
        EdistillError: no image, a class without one, images beside the class folders, a folder that cannot be
            listed, or class folders where the task takes no labels from them.
    """
    entry.refuse_names()
    root = Path(entry.source)
    classes, loose = _contents(root)
    if not classes:
        if not loose:
            raise EdistillError(f"{root} holds no images. Add some, whose names end in one of {' '.join(EXTENSIONS)}.")
        return ImageFolder(root, loose)
    if loose:
        raise EdistillError(
            f"{root} holds class folders ({classes[0]}, …) and beside them {loose[0]}. Move the image into "
            "its class folder, or keep unlabeled images in a folder of their own."
        )
    if not task.folders:
        raise EdistillError(
            f"{root} has class folders, but the task is {task.key}. Give labels as y of an .npz, or by file.py:factory."
        )
    return _labeled(root, classes)


def _contents(root: Path) -> tuple[list[str], list[str]]:
    """The names of folders and the names of images in a folder, each sorted."""
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise unlisted(error) from error
    folders = [entry.name for entry in entries if is_directory(entry)]
    images = [entry for entry in entries if is_image(entry.name)]
    return folders, [entry.name for entry in images if not is_directory(entry) and not is_pipe(entry)]


def _labeled(root: Path, classes: Sequence[str]) -> ImageFolder:
    """The images of all class folders.

    A link below them to a folder that is read elsewhere is passed over. A link to a folder above would otherwise repeat
    every image under every label.
    """
    places = [place(root / name) for name in classes]
    for at, name in zip(places, classes, strict=True):
        if (first := classes[places.index(at)]) != name:
            raise EdistillError(
                f"{root / first} and {root / name} are one folder, so its images would have two classes. Remove the "
                "link."
            )
    walked, passed = files_below([root / name for name in classes], {place(root)})
    names: list[str] = []
    labels: list[int] = []
    for label, (name, found) in enumerate(zip(classes, walked, strict=True)):
        folders = [(Path(here).relative_to(root).as_posix(), inside) for here, inside in found]
        files = [f"{here}/{file}" for here, inside in folders for file in inside if is_image(file)]
        if not files:
            raise EdistillError(
                f"{root / name} holds no images, so class {name!r} has no rows. Remove the folder, or add "
                f"images with one of {' '.join(EXTENSIONS)}."
            )
        names += files
        labels += [label] * len(files)
    return ImageFolder(root, names, np.array(labels, dtype=np.int64), tuple(classes), _remarks(passed))


def _remarks(passed: Sequence[str]) -> tuple[str, ...]:
    if not passed:
        return ()
    more = f" and {len(passed) - 1} more are" if len(passed) > 1 else " is"
    return (f"{passed[0]}{more} passed over: they lead to folders whose images are read elsewhere.",)


def is_image(name: str) -> bool:
    """Whether a file's name has the extension of an image."""
    return name.lower().endswith(EXTENSIONS)
