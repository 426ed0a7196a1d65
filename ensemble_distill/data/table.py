"""A table: CSV or TSV, or with pyarrow Parquet, Arrow and Feather, of columns that the settings declare: numbers and
categories, or the paths of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.image_table import ImageTable, file_names
from ensemble_distill.data.reading_arrow import ARROW, read_arrow
from ensemble_distill.data.reading_csv import TEXT, read_csv
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError, first_few
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


def claims(source: str) -> bool:
    return source.lower().endswith((*TEXT, *ARROW)) and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The declared columns, read a block of rows at a time.

    Raises:
        EdistillError: no columns are declared, or one is missing; a row is ragged; a value is missing, no number, or no
            declared category; the labels do not fit the task.
    """
    entry.refuse_names()
    path, declared = Path(entry.source), entry.columns
    if not path.exists():
        raise EdistillError(f"The data's source {path} does not exist. Mend the path.")
    header, blocks = _opened(path)
    if declared is None:
        raise EdistillError(
            f"{path} is a table, and nothing says which of its columns are what: {first_few(header, 12)}. Declare "
            "them in edistill.toml, and run this beside it: data.columns = { inputs = [...], labels = [...] }."
        )
    names = declared.read(header, str(path))
    taken, y, rows = _read(declared, path, names, blocks)
    classes = declared.classes if len(declared.labels) == 1 else declared.labels or None
    named = None if classes is None else as_classes(classes, "data.columns")
    labels = None if y is None else task.as_labels(y, rows, f"{path}: {', '.join(declared.labels)}", named)
    named = named if y is not None or declared.classes else None
    if declared.images is not None:
        return ImageTable(path, list(chain.from_iterable(taken)), labels, named, declared.asked)
    return Table(np.concatenate(taken), labels, named, declared)


def header_of(path: Path) -> list[str]:
    """The names of a table's columns. Raises EdistillError where it is none."""
    return _opened(path)[0]


def _opened(path: Path) -> tuple[list[str], Iterator[Chunk]]:
    return (read_csv if path.suffix.lower() in TEXT else read_arrow)(path)


def _read(
    declared: Columns, path: Path, names: Sequence[str], blocks: Iterator[Chunk]
) -> tuple[list[Any], Array | None, int]:
    """What each block of rows holds: numbers (B, F), or names of files; the labels; and how many rows there are."""
    taken: list[Any] = []
    ys, row = [], 0
    labeled = any(name in declared.labels for name in names)
    for block in blocks:
        columns = {name: block[name] for name in names}
        if declared.images is not None:
            at = f"{path}: column {declared.images}"
            taken.append(file_names(columns[declared.images], at, path.parent, row))
        else:
            taken.append(declared.encoded(columns, str(path), row))
        if labeled:
            ys.append(declared.label_values(columns, str(path), row))
        row += len(taken[-1])
    if not row:
        raise EdistillError(f"{path} has no rows below its header. Give a table with at least one.")
    return taken, np.concatenate(ys) if labeled else None, row
