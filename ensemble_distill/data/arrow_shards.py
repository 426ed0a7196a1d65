"""Arrow files as one table. The files are mapped into memory, so that rows are read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.data.arrow_parts import Named, Parts
from ensemble_distill.data.reading_arrow import BLOCK, needing_pyarrow, opened_ipc, telling


class Shards(Parts):
    """A table in Arrow files.

    Args:
        paths: the files in their order, in Arrow's file or stream format.

    Raises:
        EdistillError: pyarrow is not installed, a file cannot be read, or two differ in their columns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        needing_pyarrow(paths[0])
        self._batches: list[Any] = []
        for path in paths:
            with telling(path):
                schema, batches = opened_ipc(path)
                self._add(path, schema)
                found = [batch for batch in batches if batch.num_rows]
                self._batches += found
                self._parts += [(path, batch.num_rows) for batch in found]
        self._sound: set[tuple[int, str]] = set()

    def __reduce__(self) -> tuple[type[Shards], tuple[tuple[Path, ...]]]:
        return Shards, (self.paths,)  # each process maps the files itself

    def blocks(self, wanted: Sequence[str], names: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any]]:
        first = 0
        for batch, (path, rows) in zip(self._batches, self._parts, strict=True):
            for start in range(0, rows, BLOCK):
                yield Named(path, batch.slice(start, BLOCK), names, first + start)
            first += rows

    def _column(self, at: int, name: str) -> Any:
        column = self._batches[at].column(self.schema.get_field_index(name))
        if (at, name) not in self._sound:
            with telling(self._parts[at][0]):
                column.validate(full=True)
            self._sound.add((at, name))
        return column
