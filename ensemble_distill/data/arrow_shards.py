"""Arrow files as one table whose rows are read where they lie: the files are mapped into memory, and none is kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ensemble_distill.data.reading_arrow import Columnar, needing_pyarrow, opened_ipc, telling
from ensemble_distill.errors import EdistillError


class Shards:
    """Args:
        paths: of Arrow's file or stream format, one after the other.

    Raises:
        EdistillError: pyarrow is not there, a file cannot be read, or two have other columns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        needing_pyarrow(paths[0])
        self._batches: list[tuple[Path, Any]] = []
        self.schema: Any = None
        for path in paths:
            with telling(path):
                schema, batches = opened_ipc(path)
                if self.schema is not None and schema.names != self.schema.names:
                    raise EdistillError(
                        f"{path} has the columns {', '.join(schema.names)}, and {paths[0]} "
                        f"{', '.join(self.schema.names)}. Save the data set again."
                    )
                self._refuse_other_types(path, schema)
                self.schema = self.schema or schema
                self._batches += [(path, batch) for batch in batches if batch.num_rows]
        self._ends = list(accumulate(batch.num_rows for _, batch in self._batches))
        self._sound: set[tuple[int, str]] = set()

    def _refuse_other_types(self, path: Path, schema: Any) -> None:
        if self.schema is None or schema.types == self.schema.types:
            return
        name, here, there = next(
            (field.name, field.type, other.type)
            for field, other in zip(schema, self.schema, strict=True)
            if field.type != other.type
        )
        raise EdistillError(
            f"{path}: column {name} holds {here}, and in {self.paths[0]} {there}. Save the data set again."
        )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[type[Shards], tuple[tuple[Path, ...]]]:
        return Shards, (self.paths,)  # a process maps the files for itself, and is sent none of them

    @cached_property
    def header(self) -> list[str]:
        return list(self.schema.names)

    def blocks(self, names: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, list[Any]]]:
        """Blocks of rows by column.

        Args:
            names: of columns that hold classes by number, what those are called.
        """
        first = 0
        for at, (path, batch) in enumerate(self._batches):
            yield _Named(path, self.schema, batch, names, first, partial(self._column, at))
            first += batch.num_rows

    def lacks(self, column: str) -> bool:
        """Whether a column of classes by number says of no row which one it has."""
        import pyarrow.types as types

        if not types.is_signed_integer(self.schema.field(column).type):
            return False
        found = (self._column(at, column).fill_null(-1) for at in range(len(self._batches)))
        return all((one.to_numpy(zero_copy_only=False) == -1).all() for one in found)

    def refuse_no_pictures(self, column: str) -> None:
        """Raise EdistillError where a column does not hold pictures as `datasets` stores them."""
        import pyarrow.types as types

        kind = self.schema.field(column).type
        parts = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}
        content = parts.get("bytes")
        if content is None or "path" not in parts or not (types.is_binary(content) or types.is_large_binary(content)):
            raise EdistillError(
                f"{self.paths[0]}: column {column} holds {kind}, and pictures are struct<bytes: binary, path: string>. "
                "Save the data set again."
            )

    def picture(self, column: str, row: int) -> tuple[Any, str | None]:
        """The bytes of a picture as a file of Arrow's, or None; and the path that stands beside them."""
        import pyarrow

        at = bisect_right(self._ends, row)
        cell = self._column(at, column)
        place = row - (self._ends[at - 1] if at else 0)
        if not cell[place].is_valid:
            return None, None
        content, path = (cell.field(name)[place] for name in ("bytes", "path"))
        return (pyarrow.BufferReader(content.as_buffer()) if content.is_valid else None), path.as_py()

    def sizes(self, column: str) -> Iterator[int]:
        """Of each row the bytes of its picture; 0 where it has none."""
        import pyarrow.compute as compute

        for at in range(len(self._batches)):
            lengths = compute.binary_length(self._column(at, column).field("bytes"))
            yield from lengths.fill_null(0).to_pylist()

    def _column(self, at: int, name: str) -> Any:
        """A column of a batch, which was looked at: offsets that lead out of the file would be read all the same."""
        path, batch = self._batches[at]
        column = batch.column(self.schema.get_field_index(name))
        if (at, name) not in self._sound:
            with telling(path):
                column.validate(full=True)
            self._sound.add((at, name))
        return column


class _Named(Columnar):
    """A batch whose classes are read by their names."""

    def __init__(
        self,
        path: Path,
        schema: Any,
        batch: Any,
        names: Mapping[str, Sequence[str]],
        first: int,
        column: Callable[[str], Any],
    ) -> None:
        super().__init__(path, schema, batch)
        self.names, self.first, self.column = names, first, column

    def __missing__(self, name: str) -> list[Any]:
        self.column(name)  # looked at
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
