"""The rows of a table, whatever its file format: declared columns become numbers, pictures, arrays or texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.image_table import ImageTable, file_names
from ensemble_distill.data.kinds import as_part, taken
from ensemble_distill.data.nested import as_array, refuse_other
from ensemble_distill.data.several import NUMBERS, Beside
from ensemble_distill.data.source import Array, Kind, Scale, Source
from ensemble_distill.data.texts import Texts
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.labels import as_classes

Chunk = Mapping[str, Sequence[Any]]  # values by column, of some rows
Names = tuple[str, ...] | None
Pictured = Callable[[Array | None, Names], Source]
Take = Callable[[Array, str], tuple[Array, Kind]]
# the name of each part where a row has several
CALLED = {"images": "pixel_values", "text": "text", "array": "array", "inputs": NUMBERS}


class Table(Arrays):
    """Rows of numbers, with the column that each number comes from.

    Attributes:
        groups: (F,) the index of each number's column.
        numeric: (F,) whether the number is a quantity; a category's is not, and gets no noise.
        features: (F,) the numbers' names; see `InputColumns.features`.
        columns: the columns that rows are made of.
    """

    def __init__(self, x: Array, y: Array | None, classes: tuple[str, ...] | None, columns: Columns) -> None:
        super().__init__(x, y, "features", classes)
        self.groups, self.numeric, self.features = columns.groups, columns.numeric, columns.features
        self.columns = columns.asked

    @cached_property
    def scale(self) -> Scale | None:
        own = Arrays(self.x, None, "features").scale
        return None if not isinstance(own, np.ndarray) else np.where(self.numeric, own, np.float32(0))


class ArrayTable(Arrays):
    """Rows of one array each, from one column.

    Attributes:
        columns: the column that holds them.
    """

    def __init__(
        self, x: Array, y: Array | None, kind: Kind, classes: tuple[str, ...] | None, columns: InputColumns
    ) -> None:
        super().__init__(x, y, kind, classes)
        self.columns = columns


@dataclass
class TableRows:
    """Reads the declared columns of a table, a block of rows at a time, and makes a source of them.

    Attributes:
        declared: what the table's columns are.
        named: the table's path, for messages.
        root: the folder that the paths of pictures are relative to.
        names: the columns to read.
        elsewhere: whether the pictures are read elsewhere.
        count: how many rows were read.
    """

    declared: Columns
    named: Path
    root: Path
    names: Sequence[str]
    elsewhere: bool = False
    count: int = 0
    taken: dict[str, list[Any]] = field(default_factory=dict)  # by part, for each block: (B, …), file names, or texts
    targets: list[Array] = field(default_factory=list)

    def read(self, blocks: Iterable[Chunk]) -> TableRows:
        """Reads all rows. Raises EdistillError if there are none, and as `Columns.encoded` does."""
        for block in blocks if self.names else ():
            columns = {name: block[name] for name in self.names if name != self.declared.array}
            for key in self.parts:
                found = self._inputs(key, block)
                self.taken.setdefault(key, []).append(found)
            if any(name in self.declared.labels for name in self.names):
                self.targets.append(self.declared.label_values(columns, str(self.named), self.count))
            self.count += len(next(iter(columns.values()), self.taken["array"][-1] if "array" in self.taken else ()))
        if not self.count and self.names:
            raise EdistillError(f"{self.named} has no rows below its header. Give a table with at least one.")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a row that are read here; keys of `CALLED`."""
        return tuple(key for key in self.declared.parts if key != "images" or not self.elsewhere)

    def _inputs(self, key: str, columns: Chunk) -> Any:
        declared, named = self.declared, str(self.named)
        if key == "text":
            return declared.read_texts(columns, named, self.count)
        if key == "inputs":
            return declared.encoded(columns, named, self.count)
        column = getattr(declared, key)
        at = f"{named}: column {column}"
        if key == "images":
            return file_names(columns[column], at, self.root, self.count)
        found = as_array(columns, column, at, self.count)
        refuse_other(self.taken.get(key, [found])[0].shape[1:], [found.shape[1:]], at, self.count)
        return found

    def labels(self, task: type[Task]) -> tuple[Array | None, tuple[str, ...] | None]:
        """The labels (N,) or (N, D), and the names of classes, labels or targets; each None if there are none."""
        declared = self.declared
        classes = declared.classes if len(declared.labels) == 1 else declared.labels or None
        names = None if classes is None else as_classes(classes, "data.columns")
        if not self.targets:
            return None, names if declared.classes else None
        of = f"{self.named}: {', '.join(declared.labels)}"
        return task.as_labels(np.concatenate(self.targets), self.count, of, names), names

    def source(self, task: type[Task], pictures: Pictured | None = None) -> Source:
        """The source of all rows: numbers, named pictures, arrays or texts, or several of these side by side.

        Args:
            pictures: makes the source of pictures that are read elsewhere, from the labels and the class names.
        """
        labels, names = self.labels(task)
        declared = self.declared
        if len(declared.parts) == 1:
            return self._part(declared.parts[0], labels, names, partial(taken, of_tokens=task.of_tokens), pictures)
        parts = {CALLED[key]: self._part(key, None, None, as_part, pictures) for key in declared.parts}
        return Beside(parts, labels, names, columns=declared.asked)

    def _part(self, key: str, labels: Array | None, names: Names, take: Take, pictures: Pictured | None) -> Source:
        columns = self.declared.asked
        if key == "images" and pictures is not None:
            return pictures(labels, names)
        if key == "inputs":
            return Table(np.concatenate(self.taken[key]), labels, names, self.declared)
        if key == "array":
            x, kind = take(np.concatenate(self.taken[key]), f"{self.named}: column {columns.array}")
            return ArrayTable(x, labels, kind, names, columns)
        rows = list(chain.from_iterable(self.taken[key]))
        if key == "text":
            return Texts(rows, labels, names, columns)
        return ImageTable(self.root, self.named, rows, labels, names, columns)
