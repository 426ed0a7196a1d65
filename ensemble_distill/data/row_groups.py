"""Parquet files as one table, read a row group at a time; the columns of groups read last are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ensemble_distill.data.arrow_parts import Named, Parts
from ensemble_distill.data.reading_arrow import needing_pyarrow, parquet_batches, telling
from ensemble_distill.data.stamp import Stamp
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import memory

KEPT = 2**28  # bytes of columns that are kept
SLOW = 2**24  # bytes of a row group beyond which reading it for one row is slow


class RowGroups(Parts):
    """A table in Parquet files.

    Args:
        paths: the files in their order.

    Raises:
        EdistillError: pyarrow is not installed, a file cannot be read, or two differ in their columns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        needing_pyarrow(paths[0])
        import pyarrow.parquet as parquet

        self._groups: list[tuple[Path, Any, int]] = []  # each one's file, the file's metadata, its number in the file
        self._stamps = {path: Stamp.of(path) for path in paths}
        for path in paths:
            with telling(path), parquet.ParquetFile(path) as file:
                self._add(path, file.schema_arrow)
                said = file.metadata
                found = [at for at in range(said.num_row_groups) if said.row_group(at).num_rows]
                self._groups += [(path, said, at) for at in found]
                self._parts += [(path, said.row_group(at).num_rows) for at in found]
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._reading = Lock()

    def __reduce__(self) -> tuple[type[RowGroups], tuple[tuple[Path, ...]]]:
        return RowGroups, (self.paths,)  # each process reads the files itself

    def blocks(self, wanted: Sequence[str], names: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Any]]:
        first = 0
        for path in self.paths:
            for batch in parquet_batches(path, wanted):
                yield Named(path, batch, names, first)
                first += batch.num_rows

    def slow(self, column: str) -> str | None:
        """A remark that shuffled rows of a column are slow to read; None if they are not.

        They are if some row group is large and the column does not fit into what is kept.
        """
        sizes = [self._claimed(at, column) for at in range(len(self._parts))]
        if sum(sizes) <= KEPT or max(sizes) <= SLOW:
            return None
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        return (
            f"{self._parts[largest][0]} has row groups of up to {self._parts[largest][1]:,} rows and "
            f"{sizes[largest] / 2**20:,.0f} MiB of {column}, and a row is read with its whole group, so shuffled rows "
            "are slow. Write it with smaller ones, as pyarrow.parquet.write_table(table, path, row_group_size=100), or "
            "as a data set of the library datasets, save_to_disk."
        )

    def _claimed(self, at: int, name: str) -> int:
        """The size in bytes of a column of a row group in memory, as the file states it."""
        path, said, number = self._groups[at]
        with telling(path):  # names in the file may not be UTF-8
            group = said.row_group(number)
            chunks = (group.column(index) for index in range(group.num_columns))
            return sum(one.total_uncompressed_size for one in chunks if f"{one.path_in_schema}.".startswith(f"{name}."))

    def _column(self, at: int, name: str) -> Any:
        with self._reading:
            if (at, name) in self._kept:
                self._kept.move_to_end((at, name))
                return self._kept[at, name]
            column = self._read(at, name)
            self._kept[at, name] = column
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
            return column

    def _read(self, at: int, name: str) -> Any:
        import pyarrow.parquet as parquet

        path, said, number = self._groups[at]
        if Stamp.of(path) != self._stamps[path]:
            raise EdistillError(f"{path} changed while it was read. Run the command again when nothing writes to it.")
        if (claimed := self._claimed(at, name)) > memory():
            raise EdistillError(
                f"{path}: column {name} of row group {number} claims {claimed:,} bytes, and this machine's memory has "
                f"{memory():,}. Write it with smaller row groups."
            )
        with telling(path), parquet.ParquetFile(path, metadata=said) as file:
            chunks = file.read_row_group(number, columns=[name], use_threads=False).column(name)
            column = chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)
            column.validate(full=True)
            if len(column) != self._parts[at][1]:
                raise ValueError(f"row group {number} has {len(column)} rows, and {self._parts[at][1]} are told")
        return column
