"""Arrow columns in parts, batches or row groups, that together are one table; no column is held as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from ensemble_distill.data.reading_arrow import Columnar
from ensemble_distill.errors import EdistillError

PATH, BYTES = "path", "bytes"  # fields of a picture as the library `datasets` stores it


class Parts(ABC):
    """Files with the same columns, one after the other.

    Attributes:
        paths: the files.
        schema: their common schema.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.schema: Any = None
        self._parts: list[tuple[Path, int]] = []  # the file and the number of rows of each

    def _add(self, path: Path, schema: Any) -> None:
        """Takes a file's schema. Raises EdistillError if its columns differ from those of the first."""
        if self.schema is None:
            self.schema = schema
        if schema.names != self.schema.names:
            raise EdistillError(
                f"{path} has the columns {', '.join(schema.names)}, and {self.paths[0]} "
                f"{', '.join(self.schema.names)}. Save the data set again."
            )
        for field, other in zip(schema, self.schema, strict=True):
            if field.type != other.type:
                raise EdistillError(
                    f"{path}: column {field.name} holds {field.type}, and in {self.paths[0]} {other.type}. Save the "
                    "data set again."
                )

    @abstractmethod
    def _column(self, at: int, name: str) -> Any:
        """A column of a part. It is validated, since pyarrow would follow offsets that lead out of the part."""

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(rows for _, rows in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def header(self) -> list[str]:
        return list(self.schema.names)

    @abstractmethod
    def blocks(self, wanted: Sequence[str], names: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any]]:
        """Blocks of rows by column.

        Args:
            wanted: the columns to read.
            names: the class names of columns that hold class numbers and are to be read by name.
        """

    def lacks(self, column: str) -> bool:
        """Whether a column of class numbers is −1 or missing in every row."""
        import pyarrow.types as types

        if not types.is_signed_integer(self.schema.field(column).type):
            return False
        found = (self._column(at, column).fill_null(-1) for at in range(len(self._parts)))
        return all((one.to_numpy(zero_copy_only=False) == -1).all() for one in found)

    def holds_pictures(self, column: str) -> bool:
        """See `are_pictures`."""
        return are_pictures(self.schema.field(column).type)

    def refuse_no_pictures(self, column: str) -> None:
        """Raise EdistillError if a column does not hold pictures; see `are_pictures`."""
        if not self.holds_pictures(column):
            raise EdistillError(
                f"{self.paths[0]}: column {column} holds {self.schema.field(column).type}, and pictures are "
                "struct<bytes: binary, path: string>, or binary. Save the data set again."
            )

    def picture(self, column: str, row: int) -> tuple[Any, str | None]:
        """A picture's bytes as an Arrow file object, and the path stored beside them; each None if missing."""
        import pyarrow

        at = bisect_right(self._ends, row)
        cell = self._column(at, column)
        place = row - (self._ends[at - 1] if at else 0)
        if not cell[place].is_valid:
            return None, None
        beside = self._has_paths(column)
        content = cell.field(BYTES)[place] if beside else cell[place]
        path = cell.field(PATH)[place].as_py() if beside else None
        return (pyarrow.BufferReader(content.as_buffer()) if content.is_valid else None), path

    def sizes(self, column: str) -> Iterator[int]:
        """The size of each row's picture in bytes; 0 for none."""
        import pyarrow.compute as compute

        for at in range(len(self._parts)):
            cell = self._column(at, column)
            lengths = compute.binary_length(cell.field(BYTES) if self._has_paths(column) else cell)
            yield from lengths.fill_null(0).to_pylist()

    def _has_paths(self, column: str) -> bool:
        return bool(self.schema.field(column).type.num_fields)


def are_pictures(kind: Any) -> bool:
    """Whether values of an Arrow type are a file's bytes, bare or beside a path, as `datasets` stores them."""
    import pyarrow.types as types

    parts = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)} if types.is_struct(kind) else {}
    content = parts.get(BYTES, kind)
    beside = PATH in parts or not parts
    return bool(beside and (types.is_binary(content) or types.is_large_binary(content)))


class Named(Columnar):
    """The columns of a batch, with class numbers read as class names."""

    def __init__(self, path: Path, batch: Any, names: Mapping[str, Sequence[str]], first: int) -> None:
        super().__init__(path, batch)
        self.names, self.first = names, first

    def __missing__(self, name: str) -> list[Any]:
        values = super().__missing__(name)
        if name not in self.names:
            return values
        names = self.names[name]
        for at, value in enumerate(values):
            if value is not None and not (isinstance(value, int) and 0 <= value < len(names)):
                raise EdistillError(
                    f"{self.path}: column {name} is {value} at row {self.first + at}, and its {len(names)} classes "
                    f"have the numbers 0 to {len(names) - 1}. Drop that row, or save the data set again."
                )
        return [None if value is None else names[value] for value in values]
