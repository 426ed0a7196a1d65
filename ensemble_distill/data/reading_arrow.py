"""Parquet, Arrow and Feather as blocks of columns, by pyarrow, which is an extra of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line

ARROW = (".parquet", ".arrow", ".feather")
BLOCK = 1 << 14  # rows that are read at once

Blocks = Iterator[dict[str, list[Any]]]


def read_arrow(path: Path) -> tuple[list[str], Blocks]:
    """The header, and blocks of rows, by column: numbers, texts and booleans as Python has them, None where missing.

    Raises:
        EdistillError: pyarrow is not there, or the file is none of these.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise EdistillError(
            f"{path} is read by pyarrow, which is not installed. pip install 'edistill[tables]', or give a CSV."
        ) from None
    with _told(path):
        schema = _schema(path)
    return list(schema.names), _blocks(path, schema)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise EdistillError(
            f"{path} cannot be read as {path.suffix[1:]}: {first_line(error)}. Write it anew."
        ) from None


def _schema(path: Path) -> Any:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.ParquetFile(path).schema_arrow
    import pyarrow.ipc as ipc

    with ipc.open_file(path) as file:
        return file.schema


def _batches(path: Path) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        yield from parquet.ParquetFile(path).iter_batches(BLOCK)
        return
    import pyarrow.ipc as ipc

    with ipc.open_file(path) as file:
        for at in range(file.num_record_batches):
            yield file.get_batch(at)


def _blocks(path: Path, schema: Any) -> Blocks:
    with _told(path):
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
