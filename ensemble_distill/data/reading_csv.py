"""CSV and TSV as blocks of columns: UTF-8, one header, and equally many fields in every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ensemble_distill.errors import EdistillError

TEXT = (".csv", ".tsv")
BLOCK = 1 << 14  # rows that are read at once
LONGEST = 1 << 20  # characters of a field

Blocks = Iterator[dict[str, list[str]]]


def read_csv(path: Path) -> tuple[list[str], Blocks]:
    """The header, and blocks of rows, by column.

    Raises:
        EdistillError: the file is not UTF-8 or not CSV, has no header or another separator, or a row has another number
            of fields.
    """
    rows = _rows(path)
    header = next(rows, None)
    if header is None or not any(header):
        raise EdistillError(f"{path} has no header. Make its first line the names of its columns.")
    other = ";" if path.suffix.lower() == ".csv" else ","
    if len(header) == 1 and other in header[0]:
        raise EdistillError(
            f"{path} has one column, {header[0][:60]!r}, with {other!r} in it. Separate fields by commas."
        )
    return header, _blocks(path, header, rows)


def _rows(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    except UnicodeDecodeError as error:
        raise EdistillError(
            f"{path} is not text in UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except csv.Error as error:
        raise EdistillError(f"{path} cannot be read as CSV: {error}. Fix it there.") from None
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Make it readable.") from None


def _blocks(path: Path, header: list[str], rows: Iterator[list[str]]) -> Blocks:
    block: list[list[str]] = []
    for row, fields in enumerate(rows):
        if len(fields) != len(header):
            told = "an empty line" if not fields else f"{len(fields)} fields"
            raise EdistillError(
                f"{path}: row {row} has {told}, and the header names {len(header)}. Fix or drop that row."
            )
        block.append(fields)
        if len(block) == BLOCK:
            yield _columns(header, block)
            block = []
    if block:
        yield _columns(header, block)


def _columns(header: list[str], block: list[list[str]]) -> dict[str, list[str]]:
    return {name: list(values) for name, values in zip(header, zip(*block, strict=True), strict=True)}
