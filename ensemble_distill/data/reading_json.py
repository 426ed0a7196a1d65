"""JSON lines as blocks of columns: an object a line, whose keys are the columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.data.reading_csv import BLOCK
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.jsons import parse_json

JSON = (".jsonl", ".ndjson")
LONGEST = 1 << 24  # bytes of a line

Blocks = Iterator[dict[str, list[Any]]]


def read_json_lines(path: Path, names: Sequence[str] = ()) -> tuple[list[str], Blocks]:
    """The names of the columns, and blocks of rows, by column; a value is None where its row lacks the column.

    Args:
        names: columns to look for, of which each row may lack some: rows are read until all have occurred. Without
            names, the first row alone names the columns.

    Raises:
        EdistillError: there are no rows; or a line is not UTF-8 or not a JSON object, has a key twice, or is too long.
    """
    header: dict[str, None] = {}
    row = None
    for row in _rows(path):
        header |= dict.fromkeys(row)
        if header.keys() >= set(names):
            break
    if row is None:
        raise EdistillError(f"{path} has no rows. Give a table with at least one, a JSON object a line.")
    return list(header), _blocks(path, list(header))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            row = 0
            while line := file.readline(LONGEST):
                if len(line) == LONGEST:
                    raise EdistillError(f"{path}: row {row} has {LONGEST:,} bytes or more. Give shorter rows.")
                if line.strip():
                    yield _row(line, path, row)
                    row += 1
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Make it readable.") from None


def _row(line: bytes, path: Path, row: int) -> dict[str, Any]:
    try:
        found = parse_json(line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line, once=True)
        if any("\ud800" <= letter <= "\udfff" for text in _texts(found) for letter in text):
            raise ValueError("it has half a surrogate pair, which is not a character")
    except ValueError as error:
        raise EdistillError(f"{path}: row {row} is not valid JSON: {error}. Fix or drop that line.") from None
    if not isinstance(found, dict):
        raise EdistillError(
            f"{path}: row {row} is a {type(found).__name__}, and a row is a JSON object whose keys are the columns. "
            "Write one a line."
        )
    return found


def _texts(found: Any) -> list[str]:
    return [value for value in found.values() if isinstance(value, str)] if isinstance(found, dict) else []


def _blocks(path: Path, header: list[str]) -> Blocks:
    rows = _rows(path)
    while block := list(itertools.islice(rows, BLOCK)):
        yield _columns(header, block)


def _columns(header: list[str], block: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in block] for name in header}
