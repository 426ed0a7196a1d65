"""An `.npz` of inputs and, if it has them, labels and class names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from ensemble_distill.data.digests import arrays_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.kinds import as_part, taken
from ensemble_distill.data.mapped import Mapped, MappedInputs
from ensemble_distill.data.scale import unit_of
from ensemble_distill.data.several import Beside
from ensemble_distill.data.source import Array, Item, Kind, Scale, Source
from ensemble_distill.data.stored import Archive
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.labels import as_classes


class Arrays:
    """Rows of one array, in memory or in its file.

    Args:
        x: uint8 (N, H, W, C), float32 (N, …) or int64 (N, L), as `kind` says.
        y: (N, …): int64 classes or float32 targets, as `Item.y` has them; or None.
        kind: the kind of the rows; see `Item`.
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
    def scale(self) -> Scale | None:
        return unit_of(self.x, self.kind)

    @cached_property
    def digest(self) -> str:
        return arrays_digest(self.x, self.labels, self.classes)


def claims(source: str) -> bool:
    return source.endswith(".npz") and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The rows of an `.npz`: one or several inputs as the entry names them, labels and class names.

    The array `classes` may be missing, and so may y, unless the entry names another array as y.

    Raises:
        EdistillError: it is not an `.npz`; an array is missing or pickled, has a dtype or shape that is not accepted,
            or another length than the others; a value is not finite; or labels do not fit the task or the names.
    """
    entry.refuse_parts()
    path = Path(entry.source)
    archive = Archive(path)
    _refuse_missing(archive, entry)
    found = {name: _opened(archive, array) for name, array in entry.arrays.items()}
    y = archive.read(entry.y) if entry.y in archive.names else None
    rows = _rows(path, entry, found)
    classes = _classes(archive)
    labels = None if y is None else task.as_labels(y, rows, f"{path}: {entry.y}", classes)
    remarks = _remarks(archive, entry, rows) if y is None else ()
    if isinstance(entry.x, str):
        inputs, kind = _inputs(found[entry.x], f"{path}: {entry.x}", task)
        return Arrays(inputs, labels, kind, classes, remarks)
    parts = {name: _part(x, f"{path}: {entry.arrays[name]}") for name, x in found.items()}
    return Beside(parts, labels, classes, remarks)


def _opened(archive: Archive, name: str) -> Array | Mapped:
    mapped = archive.mapped(name)
    return archive.read(name) if mapped is None else mapped


def _inputs(x: Array | Mapped, named: str, task: type[Task]) -> tuple[Array | MappedInputs, Kind]:
    if isinstance(x, np.ndarray):
        return taken(x, named, task.of_tokens)
    inputs = MappedInputs(x, task.of_tokens)
    return inputs, inputs.kind


def _part(x: Array | Mapped, named: str) -> Arrays:
    """One of a row's several arrays as a source."""
    if isinstance(x, np.ndarray):
        inputs, kind = as_part(x, named)
        return Arrays(inputs, None, kind)
    mapped = MappedInputs(x, of_tokens=False, part=True)
    return Arrays(mapped, None, mapped.kind)


def _refuse_missing(archive: Archive, entry: Entry) -> None:
    missing = next((array for array in entry.arrays.values() if array not in archive.names), None)
    if missing is None and entry.y != "y" and entry.y not in archive.names:
        missing = entry.y
    if missing is None:
        return
    there = [name for name in archive.names if name not in ("y", "classes")]
    several = "" if len(there) < 2 else f"Where a row is several arrays, list them: x = {json.dumps(there)}. "
    wanted = f"{entry.model} was trained on it: give an .npz that has it, by that name."
    mend = f'{several}Name the right ones: {{ source = "{archive.path}", x = ..., y = ... }}.'
    raise EdistillError(
        f"{archive.path} has no array {missing!r}; it holds {', '.join(archive.names) or 'none'}. "
        f"{mend if entry.model is None else wanted}"
    )


def _rows(path: Path, entry: Entry, found: Mapping[str, Array | Mapped]) -> int:
    """The number of rows. Raises EdistillError if there are none, or the arrays differ in length."""
    for name, x in found.items():
        if not x.shape or len(x) == 0:
            raise EdistillError(f"{path}: {entry.arrays[name]} has shape {x.shape}, so no rows. Give it one at least.")
    (first, like), *others = found.items()
    for name, x in others:
        if len(x) != len(like):
            raise EdistillError(
                f"{path}: {entry.arrays[name]} has {len(x)} rows, and {entry.arrays[first]} {len(like)}. Give each "
                "array a row for each row of the others."
            )
    return len(like)


def _classes(archive: Archive) -> tuple[str, ...] | None:
    if "classes" not in archive.names:
        return None
    path, names = archive.path, archive.read("classes")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise EdistillError(
            f"{path}: classes is {names.dtype} of shape {names.shape}. Store one name a class, "
            "numpy.array(names, dtype=str)."
        )
    return as_classes(names.tolist(), f"{path}: classes")


def _remarks(archive: Archive, entry: Entry, rows: int) -> tuple[str, ...]:
    """A remark on arrays that could be the missing labels: those of one value per row."""
    taken = ("classes", *entry.arrays.values())
    others = [name for name in archive.names if name not in taken and archive.shape(name) == (rows,)]
    if not others:
        return ()
    return (
        f"{archive.path} has no array y, so its rows have no labels, and {', '.join(others)} (one value a row) is not "
        f'read. If those are labels, name them: {{ source = "{archive.path}", y = "{others[0]}" }}.',
    )
