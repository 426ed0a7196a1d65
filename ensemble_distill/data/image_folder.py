"""A folder of images: class folders as torchvision reads them, or one flat folder without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ensemble_distill.data.digests import folder_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.memo import Memo
from ensemble_distill.data.source import Array, Item, Kind, Source
from ensemble_distill.errors import EdistillError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder:
    """Image files as rows, decoded to uint8 RGB (H, W, 3) of each file's own size.

    Args:
        root: the folder that the names are relative to.
        names: one file a row, with "/" between folders.
        labels: (N,) int64, or None.
        classes: names in the order of the labels, or None.
    """

    kind: Kind = "pixels"
    scale: Array | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Array | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> None:
        self.root, self.names, self.labels, self.classes = root, tuple(names), labels, classes
        self._memo: Memo[Item] = Memo(len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def item(self, row: int) -> Item:
        """Decodes the file.

        Raises:
            EdistillError: it does not decode.
        """
        return self._memo.get(row, self._read)

    def _read(self, row: int) -> Item:
        path = self.root / self.names[row]
        try:
            with path.open("rb") as file, Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are of mode {image.mode}, and 8 bits a channel are read")
                pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # each of Pillow's decoders has errors of its own
            raise EdistillError(
                f"{path} (row {row}) does not decode: {error}. Replace the file, or remove it; rows after it "
                "then move up, so a cache made before no longer fits."
            ) from error
        return Item(pixels, None if self.labels is None else self.labels[row], self.kind)

    def name(self, row: int) -> str:
        return self.names[row]

    @cached_property
    def _digest(self) -> tuple[str, str]:
        return folder_digest(self.root, self.names, self.labels, self.classes)

    @property
    def digest(self) -> str:
        return self._digest[0]

    @property
    def digest_scope(self) -> str:
        return self._digest[1]


def claims(source: str) -> bool:
    return Path(source).is_dir()


def load(entry: Entry, task: str) -> Source:
    """The folder's images: classes and their files sorted lexicographically, nested folders included.

    Without class folders the images have no labels.

    Raises:
        EdistillError: no image, a class without one, images beside the class folders, a folder that cannot be
            listed, or class folders where the task is not classification.
    """
    entry.refuse_names()
    root = Path(entry.source)
    with os.scandir(root) as entries:
        classes = sorted(found.name for found in entries if found.is_dir())
    loose = sorted(path.name for path in root.iterdir() if is_image(path.name) and not path.is_dir())
    if not classes:
        if not loose:
            raise EdistillError(f"{root} holds no images. Known extensions are {' '.join(EXTENSIONS)}.")
        return ImageFolder(root, loose)
    if loose:
        raise EdistillError(
            f"{root} holds class folders ({classes[0]}, …) and beside them {loose[0]}. Move the image into "
            "its class folder, or keep unlabeled images in a folder of their own."
        )
    if task != "classification":
        raise EdistillError(
            f"{root} has class folders, but the task is {task}. Give targets as y of an .npz, or by file.py:factory."
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = list(_images(root, name))
        if not files:
            raise EdistillError(
                f"{root / name} holds no images, so class {name!r} has no rows. Remove the folder, or add "
                f"images with one of {' '.join(EXTENSIONS)}."
            )
        names += files
        labels += [label] * len(files)
    return ImageFolder(root, names, np.array(labels, dtype=np.int64), tuple(classes))


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return name.lower().endswith(EXTENSIONS)


def _images(root: Path, folder: str) -> Iterator[str]:
    """Files under root/folder in torchvision's order: folders by their whole path, files by name in each."""
    walked = sorted(os.walk(root / folder, onerror=_refuse, followlinks=True))
    for here, _, files in walked:
        prefix = Path(here).relative_to(root).as_posix()
        yield from (f"{prefix}/{name}" for name in sorted(files) if is_image(name))


def _refuse(error: OSError) -> None:
    raise EdistillError(f"{error.filename} cannot be listed: {error.strerror}. Permit reading it.") from error
