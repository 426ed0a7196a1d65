"""An `.npz` of inputs and, if it has them, labels and class names."""

from __future__ import annotations

import zipfile
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from ensemble_distill.data.digests import arrays_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.kinds import as_inputs
from ensemble_distill.data.labels import as_classes, as_labels
from ensemble_distill.data.scale import column_scale
from ensemble_distill.data.source import Array, Item, Kind, Source
from ensemble_distill.errors import EdistillError


class Arrays:
    """Rows of arrays held in memory.

    Args:
        x: uint8 (N, H, W, C), float32 (N, C, H, W) or float32 (N, F), as `kind` says.
        y: (N,) int64 classes or float32 targets, or None.
        kind: pixels, tensor or features.
        classes: names in the order of the labels, or None.
    """

    digest_scope = "all arrays whole"

    def __init__(self, x: Array, y: Array | None, kind: Kind, classes: tuple[str, ...] | None = None) -> None:
        self.x, self.labels, self.kind, self.classes = x.view(), y, kind, classes
        self.x.flags.writeable = False

    def __len__(self) -> int:
        return len(self.x)

    def item(self, row: int) -> Item:
        return Item(self.x[row], None if self.labels is None else self.labels[row], self.kind)

    def name(self, row: int) -> str:
        return f"row {row}"

    @cached_property
    def scale(self) -> Array | None:
        return column_scale(self.x) if self.kind == "features" else None

    @cached_property
    def digest(self) -> str:
        return arrays_digest(self.x, self.labels, self.classes)


def claims(source: str) -> bool:
    return source.endswith(".npz") and not Path(source).is_dir()


def load(entry: Entry, task: str) -> Source:
    """The arrays that the entry names; y and `classes` may be missing unless the entry names another y.

    Raises:
        EdistillError: not an `.npz`, a missing or pickled array, a dtype or shape that is not accepted,
            lengths that differ, a value that is not finite, labels that do not fit the task or the names.
    """
    path = Path(entry.source)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            if entry.x not in archive.files or (entry.y != "y" and entry.y not in archive.files):
                missing = entry.x if entry.x not in archive.files else entry.y
                raise EdistillError(
                    f"{path} has no array {missing!r}; it holds {', '.join(archive.files) or 'none'}. "
                    f'Name the right ones: {{ source = "{path.name}", x = ..., y = ... }}.'
                )
            x = _array(archive, entry.x, path)
            y = _array(archive, entry.y, path) if entry.y in archive.files else None
            names = _array(archive, "classes", path) if "classes" in archive.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EdistillError(f"{path} cannot be read as .npz: {error}. Write it with numpy.savez.") from error
    if x.ndim == 0 or len(x) == 0:
        raise EdistillError(f"{path}: {entry.x} has shape {x.shape}, so no rows.")
    classes = None
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise EdistillError(
                f"{path}: classes is {names.dtype} of shape {names.shape}. Store one name a class, "
                "numpy.array(names, dtype=str)."
            )
        classes = as_classes(names.tolist(), f"{path}: classes")
    x, kind = as_inputs(x, f"{path}: {entry.x}")
    labels = None if y is None else as_labels(y, len(x), task, classes, f"{path}: {entry.y}")
    return Arrays(x, labels, kind, classes)


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> Array:
    try:
        array: Array = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise EdistillError(
            f"{path}: {key} is an array of Python objects, which only unpickling could read. Store "
            "numbers, or names as numpy.array(names, dtype=str)."
        ) from error
    return array
