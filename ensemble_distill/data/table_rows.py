"""The rows of a table, whatever file it is in: declared columns become numbers, name pictures, or
are arrays or texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.image_table import ImageTable, file_names
from ensemble_distill.data.kinds import taken
from ensemble_distill.data.nested import as_array, refuse_other
from ensemble_distill.data.source import Array, Kind, Source
from ensemble_distill.data.texts import Texts
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.checks.labels import as_classes

Chunk = Mapping[str, Sequence[Any]]  # values by column, of some rows


class Table(Arrays):
    """Rows of numbers that know which column each comes from.

    Attributes:
        groups: (F,) the place of each number's column.
        numeric: (F,) whether it varies by amounts; a category does not, and gets no noise.
        features: (F,) what each is called; see `InputColumns.features`.
        columns: what its rows are made of.
    """

    def __init__(self, x: Array, y: Array | None, classes: tuple[str, ...] | None, columns: Columns) -> None:
        super().__init__(x, y, "features", classes)
        self.groups, self.numeric, self.features = columns.groups, columns.numeric, columns.features
        self.columns = columns.asked

    @cached_property
    def scale(self) -> Array | None:
        own = Arrays(self.x, None, "features").scale
        return None if own is None else np.where(self.numeric, own, np.float32(0))


class ArrayTable(Arrays):
    """Rows that are an array each, of one column.

    Attributes:
        columns: which one holds them.
    """

    def __init__(
        self, x: Array, y: Array | None, kind: Kind, classes: tuple[str, ...] | None, columns: InputColumns
    ) -> None:
        super().__init__(x, y, kind, classes)
        self.columns = columns


@dataclass
class TableRows:
    """The declared columns of a table, a block of rows at a time.

    Attributes:
        declared: what its columns are.
        named: where it is, for messages.
        root: the folder that pictures are named from.
        names: the columns that are read.
        others: whether inputs are read elsewhere, and these are labels alone.
        count: how many rows were read.
    """

    declared: Columns
    named: Path
    root: Path
    names: Sequence[str]
    others: bool = False
    count: int = 0
    taken: list[Any] = field(default_factory=list)  # of each block (B, F), or names of files, or texts
    targets: list[Array] = field(default_factory=list)

    def read(self, blocks: Iterable[Chunk]) -> TableRows:
        """Reads all rows. Raises EdistillError where there are none, and as `Columns.encoded` does."""
        for block in blocks if self.names else ():
            columns = {name: block[name] for name in self.names if name != self.declared.array}
            if not self.others:
                self.taken.append(self._inputs(block))
            if any(name in self.declared.labels for name in self.names):
                self.targets.append(self.declared.label_values(columns, str(self.named), self.count))
            self.count += len(next(iter(columns.values()), self.taken[-1] if self.taken else ()))
        if not self.count and self.names:
            raise EdistillError(f"{self.named} has no rows below its header. Give a table with at least one.")
        return self

    def _inputs(self, columns: Chunk) -> Any:
        if self.declared.array is not None:
            at = f"{self.named}: column {self.declared.array}"
            found = as_array(columns, self.declared.array, at, self.count)
            refuse_other((self.taken or [found])[0].shape[1:], [found.shape[1:]], at, self.count)
            return found
        if self.declared.text is not None:
            return self.declared.texts(columns, str(self.named), self.count)
        if self.declared.images is None:
            return self.declared.encoded(columns, str(self.named), self.count)
        at = f"{self.named}: column {self.declared.images}"
        return file_names(columns[self.declared.images], at, self.root, self.count)

    def labels(self, task: type[Task]) -> tuple[Array | None, tuple[str, ...] | None]:
        """The labels (N,) or (N, D), and the names of classes, labels or targets; None without any."""
        declared = self.declared
        classes = declared.classes if len(declared.labels) == 1 else declared.labels or None
        names = None if classes is None else as_classes(classes, "data.columns")
        if not self.targets:
            return None, names if declared.classes else None
        of = f"{self.named}: {', '.join(declared.labels)}"
        return task.as_labels(np.concatenate(self.targets), self.count, of, names), names

    def source(self, task: type[Task]) -> Source:
        """Rows of numbers, of the pictures that it names, of arrays, or of texts."""
        labels, names = self.labels(task)
        if self.declared.array is not None:
            named = f"{self.named}: column {self.declared.array}"
            x, kind = taken(np.concatenate(self.taken), named, task.of_tokens)
            return ArrayTable(x, labels, kind, names, self.declared.asked)
        if self.declared.text is not None:
            return Texts(list(chain.from_iterable(self.taken)), labels, names, self.declared.asked)
        if self.declared.images is not None:
            files = list(chain.from_iterable(self.taken))
            return ImageTable(self.root, self.named, files, labels, names, self.declared.asked)
        return Table(np.concatenate(self.taken), labels, names, self.declared)
