"""What the settings say about a split, whether they give a bare path or a table."""

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
    """A table of the settings, as far as this room reads it."""

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
    """Attributes:
    source: a folder, an `.npz`, `file.py:factory` or `package.module:factory`, `torch/NAME`.
    rows: a `.npy` of the rows to take, or None for all.
    x, y: the names of the arrays in an `.npz`, of several inputs by the names that networks take them by; other
        sources have none.
    reading: how a stream of tokens becomes rows; None for what is none.
    columns: what those of a table are; None where nothing says it.
    root, split: of a data set of torchvision the folder where it lies, and the part of it; None where nothing says it.
    name: of the split of the settings that this is of; "" for none.
    notes: the folder where what is learned of it may be kept; None for nowhere.
    model: the exported student that takes these arrays, and says them; None where the settings do.
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
        """The arrays of inputs, by the names that networks take them by."""
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
        """For sources that are no data set of torchvision.

        Raises:
            EdistillError: the entry says where one lies, or which part of it.
        """
        for key in ("root", "split"):
            if (value := getattr(self, key)) is not None:
                raise EdistillError(
                    f"{self.source} is not a torchvision data set, but {key} is {value!r}. Leave {key} out: it is for "
                    "torch/NAME."
                )

    def refuse_names(self) -> None:
        """For sources that are neither an `.npz` nor of torchvision. Raises EdistillError where the entry has keys of
        those."""
        self.refuse_arrays()
        self.refuse_parts()

    def refuse_arrays(self) -> None:
        """For sources that are not an `.npz`.

        Raises:
            EdistillError: the entry names arrays.
        """
        if (self.x, self.y) != ("x", "y"):
            x = self.x if isinstance(self.x, str) else list(self.x)
            raise EdistillError(
                f"{self.source} is not an .npz, but x is {x!r} and y is {self.y!r}. Leave both out: "
                "they name the arrays of an .npz."
            )
