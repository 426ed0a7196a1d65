"""An `.npz` of inputs and, if it has them, labels and class names."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from ensemble_distill.data.digests import arrays_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.kinds import taken
from ensemble_distill.data.mapped import Mapped, MappedInputs
from ensemble_distill.data.scale import unit_of
from ensemble_distill.data.source import Array, Item, Kind, Source
from ensemble_distill.data.stored import Archive
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.labels import as_classes


class Arrays:
    """Rows of arrays, held in memory or in their file.

    Args:
        x: uint8 (N, H, W, C), float32 (N, …) or int64 (N, L), as `kind` says.
        y: (N,) int64 classes or float32 targets, or None.
        kind: what they are; see `Item`.
        classes: names in the order of the labels, or None.
        remarks: see `Source`.
    """

    digest_scope = "all arrays whole"

    def __init__(
        self,
        x: Array | MappedInputs,
        y: Array | None,
        kind: Kind,
        classes: tuple[str, ...] | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.x, self.labels, self.kind, self.classes, self.remarks = x, y, kind, classes, remarks
        if isinstance(x, np.ndarray):
            self.x = x.view()
            self.x.flags.writeable = False

    def __len__(self) -> int:
        return len(self.x)

    def item(self, row: int) -> Item:
        return Item(self.x[row], None if self.labels is None else self.labels[row], self.kind)

    def name(self, row: int) -> str:
        return f"row {row}"

    @cached_property
    def scale(self) -> Array | None:
        return unit_of(self.x, self.kind)

    @cached_property
    def digest(self) -> str:
        return arrays_digest(self.x, self.labels, self.classes)


def claims(source: str) -> bool:
    return source.endswith(".npz") and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The arrays that the entry names; y and `classes` may be missing unless the entry names another y.

    Raises:
        EdistillError: not an `.npz`, a missing or pickled array, a dtype or shape that is not accepted,
            lengths that differ, a value that is not finite, labels that do not fit the task or the names.
    """
    entry.refuse_parts()
    path = Path(entry.source)
    archive = Archive(path)
    if entry.x not in archive.names or (entry.y != "y" and entry.y not in archive.names):
        missing = entry.x if entry.x not in archive.names else entry.y
        raise EdistillError(
            f"{path} has no array {missing!r}; it holds {', '.join(archive.names) or 'none'}. "
            f'Name the right ones: {{ source = "{path}", x = ..., y = ... }}.'
        )
    mapped = archive.mapped(entry.x)
    x = archive.read(entry.x) if mapped is None else mapped
    y = archive.read(entry.y) if entry.y in archive.names else None
    names = archive.read("classes") if "classes" in archive.names else None
    if not x.shape or len(x) == 0:
        raise EdistillError(f"{path}: {entry.x} has shape {x.shape}, so no rows.")
    classes = None
    if names is not None:
        if names.ndim != 1 or names.dtype.kind != "U":
            raise EdistillError(
                f"{path}: classes is {names.dtype} of shape {names.shape}. Store one name a class, "
                "numpy.array(names, dtype=str)."
            )
        classes = as_classes(names.tolist(), f"{path}: classes")
    inputs, kind = _inputs(x, f"{path}: {entry.x}", task)
    labels = None if y is None else task.as_labels(y, len(x), f"{path}: {entry.y}", classes)
    return Arrays(inputs, labels, kind, classes, _remarks(archive, entry, len(x)) if y is None else ())


def _inputs(x: Array | Mapped, named: str, task: type[Task]) -> tuple[Array | MappedInputs, Kind]:
    if isinstance(x, np.ndarray):
        return taken(x, named, task.of_tokens)
    inputs = MappedInputs(x, task.of_tokens)
    return inputs, inputs.kind


def _remarks(archive: Archive, entry: Entry, rows: int) -> tuple[str, ...]:
    """Of data without labels, which arrays could be them: one number a row."""
    others = [name for name in archive.names if name not in (entry.x, "classes") and archive.shape(name) == (rows,)]
    if not others:
        return ()
    return (
        f"{archive.path} has no array y, so its rows have no labels, and {', '.join(others)} (one value a row) is not "
        f'read. If those are labels, name them: {{ source = "{archive.path}", y = "{others[0]}" }}.',
    )
