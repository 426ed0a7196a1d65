"""Parquet, Arrow and Feather as blocks of columns, by pyarrow, which is an extra of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line

ARROW = (".parquet", ".arrow", ".feather")
MAGIC = b"ARROW1"  # how the file format begins, and the stream format does not
BLOCK = 1 << 14  # rows that are read at once

Blocks = Iterator[dict[str, list[Any]]]


def read_arrow(path: Path) -> tuple[list[str], Blocks]:
    """The header, and blocks of rows, by column: numbers, texts and booleans as Python has them, None where missing.

    Raises:
        EdistillError: pyarrow is not there, or the file is none of these.
    """
    needing_pyarrow(path)
    with telling(path):
        schema = _schema(path)
    return list(schema.names), _blocks(path, schema)


def needing_pyarrow(path: Path) -> None:
    """Raise EdistillError where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise EdistillError(
            f"{path} is read by pyarrow, which is not installed. pip install 'edistill[tables]', or give a CSV."
        ) from None


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """What is wrong with a file, in the project's words."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise EdistillError(
            f"{path} cannot be read as {path.suffix[1:]}: {first_line(error)}. Write it anew."
        ) from None


def opened_ipc(path: Path) -> tuple[Any, Iterator[Any]]:
    """The schema of a file or a stream of Arrow's, and its batches, mapped into memory: what is not looked at is not
    read."""
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


def _schema(path: Path) -> Any:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.ParquetFile(path).schema_arrow
    return opened_ipc(path)[0]


def _batches(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        yield from parquet.ParquetFile(path).iter_batches(BLOCK)
        return
    yield from opened_ipc(path)[1]


def _blocks(path: Path, schema: Any) -> Blocks:
    with telling(path):
        for batch in _batches(path):
            yield Columnar(path, schema, batch)


class Columnar(dict[str, list[Any]]):
    """The columns of a batch, each made a list when it is asked for: a table may have many that nobody reads."""

    def __init__(self, path: Path, schema: Any, batch: Any) -> None:
        super().__init__()
        self.path, self.schema, self.batch = path, schema, batch

    def __missing__(self, name: str) -> list[Any]:
        import pyarrow.types as types

        kind = self.schema.field(name).type
        inner = kind.value_type if types.is_dictionary(kind) else kind
        plain = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
        if not any(is_one(inner) for is_one in plain):
            raise EdistillError(
                f"{self.path}: column {name} holds {kind}, and only numbers, texts and booleans are read. Store it as "
                "one of these."
            )
        values: list[Any] = self.batch.column(self.schema.get_field_index(name)).to_pylist()
        return values
