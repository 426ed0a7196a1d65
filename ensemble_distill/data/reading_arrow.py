"""Parquet, Arrow and Feather as blocks of columns, read by pyarrow, an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line

ARROW = (".parquet", ".arrow", ".feather")
MAGIC = b"ARROW1"  # begins Arrow's file format, not its stream format
BLOCK = 1 << 14  # rows that are read at once

Blocks = Iterator[Mapping[str, Any]]


def arrow_schema(path: Path) -> Any:
    """The schema of a file's columns.

    Raises:
        EdistillError: pyarrow is not installed, or the file has none of these formats.
    """
    needing_pyarrow(path)
    with telling(path):
        if is_parquet(path):
            import pyarrow.parquet as parquet

            with parquet.ParquetFile(path) as file:
                return file.schema_arrow
        return opened_ipc(path)[0]


def arrow_blocks(path: Path, wanted: Sequence[str]) -> Blocks:
    """Blocks of rows, by column: numbers, texts and booleans as Python has them, None where missing.

    Args:
        wanted: the columns to read.

    Raises:
        EdistillError: as `arrow_schema` does.
    """
    needing_pyarrow(path)
    with telling(path):
        for batch in parquet_batches(path, wanted) if is_parquet(path) else opened_ipc(path)[1]:
            for start in range(0, batch.num_rows, BLOCK):
                yield Columnar(path, batch.slice(start, BLOCK))


def flat_of(schema: Any) -> list[str]:
    """The columns whose values are neither nested nor bytes."""
    import pyarrow.types as types

    odd = (types.is_nested, types.is_binary, types.is_large_binary)
    return [field.name for field in schema if not any(is_one(field.type) for is_one in odd)]


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def parquet_batches(path: Path, wanted: Sequence[str]) -> Iterator[Any]:
    """Batches of rows of some columns. Raises EdistillError if they cannot be read."""
    import pyarrow.parquet as parquet

    with telling(path), parquet.ParquetFile(path) as file:
        yield from file.iter_batches(BLOCK, columns=list(wanted))


def needing_pyarrow(path: Path) -> None:
    """Raise EdistillError if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise EdistillError(
            f"{path} is read by pyarrow, which is not installed. pip install 'edistill[tables]', or give a CSV."
        ) from None


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turns errors in reading a file into an EdistillError that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise EdistillError(
            f"{path} cannot be read as {path.suffix[1:]}: {first_line(error)}. Write it again."
        ) from None


def opened_ipc(path: Path) -> tuple[Any, Iterator[Any]]:
    """The schema and the batches of a file in Arrow's file or stream format.

    The file is mapped into memory: what is not used is not read.
    """
    import pyarrow
    import pyarrow.ipc as ipc

    mapped = pyarrow.memory_map(str(path))
    if mapped.size() == 0:
        raise ValueError("it is empty")
    begins = mapped.read(len(MAGIC))
    mapped.seek(0)
    if begins == MAGIC:
        file = ipc.open_file(mapped)
        return file.schema, (file.get_batch(at) for at in range(file.num_record_batches))
    stream = ipc.open_stream(mapped)
    return stream.schema, iter(stream)


class Columnar(dict[str, list[Any]]):
    """The columns of a batch, converted to lists at access, since a table may have many that nobody reads."""

    def __init__(self, path: Path, batch: Any) -> None:
        super().__init__()
        self.path, self.batch = path, batch

    def __missing__(self, name: str) -> list[Any]:
        import pyarrow.types as types

        column = self.column(name)
        inner = column.type.value_type if types.is_dictionary(column.type) else column.type
        plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
        if not any(is_one(inner) for is_one in plain):
            raise EdistillError(
                f"{self.path}: column {name} holds {column.type}, and only numbers, texts and booleans are read. Store "
                "it as one of these; one of lists or tensors, which is the whole of a row, goes by data.columns.array."
            )
        values: list[Any] = column.to_pylist()
        return values

    def column(self, name: str) -> Any:
        """A column as an Arrow array. It is validated, since pyarrow would follow offsets that lead out of the file."""
        with telling(self.path):
            column = self.batch.column(name)
            column.validate(full=True)
        return column
