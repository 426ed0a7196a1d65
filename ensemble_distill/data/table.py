"""Tables: CSV, TSV and JSON lines, and with pyarrow Parquet, Arrow and Feather.

The settings declare the columns: numbers and categories, paths of pictures, arrays, or texts. An Arrow or Parquet file
may instead describe its own columns, as those of the library `datasets` do, and may hold the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ensemble_distill.data.entry import Entry
from ensemble_distill.data.patterns import files_of
from ensemble_distill.data.reading_arrow import ARROW, arrow_blocks, arrow_schema, flat_of
from ensemble_distill.data.reading_csv import TEXT, read_csv
from ensemble_distill.data.reading_json import JSON, read_json_lines
from ensemble_distill.data.saved_dataset import of_files
from ensemble_distill.data.source import Source
from ensemble_distill.data.table_rows import Chunk, TableRows
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.tasks import Task


def claims(source: str) -> bool:
    return source.lower().endswith((*TEXT, *JSON, *ARROW)) and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The declared columns, read a block of rows at a time.

    Raises:
        EdistillError: no columns are declared, or one is missing; a row has another number of fields; a value is
            missing, not a number, or not a declared category; the labels do not fit the task.
    """
    entry.refuse_names()
    paths, declared = files_of(entry.source), entry.columns
    if is_arrow(paths[0]) and (source := of_files(paths, entry, task)) is not None:
        return source
    header = header_of(paths[0], () if declared is None else declared.declared)
    if declared is None:
        raise EdistillError(
            f"{entry.source} is a table, and nothing says which of its columns are what: {first_few(header, 12)}. "
            "Declare them in edistill.toml, and run this beside it: data.columns = { inputs = [...], labels = [...] }, "
            'or with text = "…", images = "…" or array = "…" in place of inputs.'
        )
    named, names = Path(entry.source), declared.read(header, entry.source)
    for path in paths[1:]:
        refuse_lacking(path, header_of(path, names), names)
    return TableRows(declared, named, named.parent, names).read(_blocks(paths, names)).source(task)


def refuse_lacking(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    """Raise EdistillError if one of several files lacks a column that is read from the first."""
    lacking = [name for name in names if name not in header]
    if lacking:
        raise EdistillError(
            f"{path} has no column {lacking[0]!r}, which the first of these files has; it has {first_few(header, 8)}. "
            "Write it there, too."
        )


def header_of(path: Path, names: Sequence[str] = ()) -> list[str]:
    """The names of a table's columns.

    Args:
        names: columns to look for, in JSON lines, where each row may lack some; see `read_json_lines`.

    Raises:
        EdistillError: the file is not a table.
    """
    if is_arrow(path):
        return list(arrow_schema(path).names)
    return _texts(path, names)[0]


def first_rows(path: Path) -> tuple[list[str], Chunk]:
    """The names of a table's columns, and its first rows, in Arrow and Parquet without nested columns and bytes.

    Raises:
        EdistillError: the file is not a table.
    """
    header = header_of(path)
    wanted = flat_of(arrow_schema(path)) if is_arrow(path) else header
    return header, next(_blocks([path], wanted), {}) if wanted else {}


def is_arrow(path: Path) -> bool:
    """Whether pyarrow reads the file, by its extension."""
    return path.suffix.lower() in ARROW


def _blocks(paths: Sequence[Path], names: Sequence[str]) -> Iterator[Chunk]:
    for path in paths:
        yield from arrow_blocks(path, names) if is_arrow(path) else _texts(path, names)[1]


def _texts(path: Path, names: Sequence[str]) -> tuple[list[str], Iterator[Chunk]]:
    return read_csv(path) if path.suffix.lower() in TEXT else read_json_lines(path, names)
