"""A table: CSV, TSV or JSON lines, or with pyarrow Parquet, Arrow and Feather, of columns that the settings declare:
numbers and categories, the paths of pictures, or texts. An Arrow file of the library `datasets` says what its columns
are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ensemble_distill.data.entry import Entry
from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.reading_arrow import ARROW, read_arrow
from ensemble_distill.data.reading_csv import TEXT, read_csv
from ensemble_distill.data.reading_json import JSON, read_json_lines
from ensemble_distill.data.saved_dataset import arrow_file
from ensemble_distill.data.source import Source
from ensemble_distill.data.table_rows import Chunk, TableRows
from ensemble_distill.data.walk import is_folder, there
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.tasks import Task


def claims(source: str) -> bool:
    return source.lower().endswith((*TEXT, *JSON, *ARROW)) and not is_folder(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The declared columns, read a block of rows at a time.

    Raises:
        EdistillError: no columns are declared, or one is missing; a row is ragged; a value is missing, no number, or no
            declared category; the labels do not fit the task.
    """
    entry.refuse_names()
    path, declared = Path(entry.source), entry.columns
    if not path.exists():
        raise EdistillError(f"The data's source {path} does not exist. Mend the path.")
    if path.suffix.lower() == ".arrow" and (source := arrow_file(entry, task)) is not None:
        return source
    header, blocks = _opened(path)
    if declared is None:
        raise EdistillError(
            f"{path} is a table, and nothing says which of its columns are what: {first_few(header, 12)}. Declare "
            "them in edistill.toml, and run this beside it: data.columns = { inputs = [...], labels = [...] }, or "
            'with text = "…" or images = "…" in place of inputs.'
        )
    return TableRows(declared, path, path.parent, declared.read(header, str(path))).read(blocks).source(task)


def header_of(path: Path) -> list[str]:
    """The names of a table's columns. Raises EdistillError where it is none."""
    return _opened(path)[0]


def picture_column(path: Path) -> str | None:
    """The column whose first value names a picture beside the table; None where there is none."""
    header, blocks = _opened(path)
    block: Chunk = next(iter(blocks), {})
    for name in header:
        try:
            first = block[name][0]
        except (EdistillError, LookupError):  # of nested columns, or of no rows
            continue
        if isinstance(first, str) and is_image(first) and there(path.parent / first):
            return name
    return None


def _opened(path: Path) -> tuple[list[str], Iterator[Chunk]]:
    suffix = path.suffix.lower()
    return (read_csv if suffix in TEXT else read_json_lines if suffix in JSON else read_arrow)(path)
