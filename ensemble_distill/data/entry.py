"""What the settings say about a split, whether as a bare path or as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ensemble_distill.data.columns import Columns, Declared
from ensemble_distill.data.several import refuse_unfit
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.errors import EdistillError


class Described(Protocol):
    """The settings of a split that this package reads."""

    @property
    def source(self) -> str: ...
    @property
    def rows(self) -> str | None: ...
    @property
    def x(self) -> str | Sequence[str] | Mapping[str, str]: ...
    @property
    def y(self) -> str: ...


@dataclass(frozen=True)
class Entry:
    """What a source is opened from.

    Attributes:
        source: a path, `file.py:factory`, `package.module:factory` or `torch/NAME`; see `open_source`.
        rows: a `.npy` of the rows to take, or None for all.
        x, y: the names of the arrays in an `.npz`. For several inputs, x maps the network's name of each to the
            array's name. Other sources keep the defaults.
        reading: how a stream of tokens becomes rows; None for the defaults.
        columns: what the columns of a table are; None if nothing says it.
        root, split: the folder of a torchvision data set, and the part of it to take; None if nothing says it.
        name: the split of the settings that this describes; "" for none.
        notes: the folder of the notes about tar shards; None keeps no notes.
        model: the exported student that names these arrays, for messages; None if the settings name them.
    """

    source: str
    rows: str | None = None
    x: str | Mapping[str, str] = "x"
    y: str = "y"
    reading: Reading | None = None
    columns: Columns | None = None
    root: str | None = None
    split: str | None = None
    name: str = ""
    notes: Path | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, str):
            refuse_unfit(list(self.x), self.source)

    @property
    def arrays(self) -> Mapping[str, str]:
        """The names of the input arrays, by the names that networks take them by."""
        return {self.x: self.x} if isinstance(self.x, str) else self.x

    @classmethod
    def of(
        cls,
        given: str | os.PathLike[str] | Described,
        reading: Reading | None = None,
        columns: Declared | None = None,
        name: str = "",
        notes: Path | None = None,
    ) -> Entry:
        told = None if columns is None else Columns.of(columns)
        if isinstance(given, Entry):
            return replace(given, reading=reading, columns=told, name=name, notes=notes)
        if isinstance(given, str | os.PathLike):
            return cls(os.fspath(given), reading=reading, columns=told, name=name, notes=notes)
        root, split = (getattr(given, key, None) for key in ("root", "split"))
        x = given.x if isinstance(given.x, str | Mapping) else {array: array for array in given.x}
        return cls(given.source, given.rows, x, given.y, reading, told, root, split, name, notes)

    def refuse_parts(self) -> None:
        """Raise EdistillError if the entry has keys of a torchvision data set: `root` or `split`."""
        for key in ("root", "split"):
            if (value := getattr(self, key)) is not None:
                raise EdistillError(
                    f"{self.source} is not a torchvision data set, but {key} is {value!r}. Leave {key} out: it is for "
                    "torch/NAME."
                )

    def refuse_names(self) -> None:
        """Raise EdistillError if the entry has keys of an `.npz` or of a torchvision data set."""
        self.refuse_arrays()
        self.refuse_parts()

    def refuse_arrays(self) -> None:
        """Raise EdistillError if the entry names arrays, which only an `.npz` has."""
        if (self.x, self.y) != ("x", "y"):
            x = self.x if isinstance(self.x, str) else list(self.x)
            raise EdistillError(
                f"{self.source} is not an .npz, but x is {x!r} and y is {self.y!r}. Leave both out: "
                "they name the arrays of an .npz."
            )
