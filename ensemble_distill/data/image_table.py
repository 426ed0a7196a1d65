"""Tables that name picture files: a row is the file that one column names, relative to the table's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ensemble_distill.data.image_folder import ImageFolder
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns


class ImageTable(ImageFolder):
    """Picture files in the order of a table's rows; several rows may name the same file.

    Args:
        root: the folder that the names are relative to.
        table: the table that names them, for messages.

    Attributes:
        columns: the column that names them.
    """

    def __init__(
        self,
        root: Path,
        table: Path,
        names: Sequence[str],
        labels: Array | None,
        classes: tuple[str, ...] | None,
        columns: InputColumns,
    ) -> None:
        super().__init__(root, names, labels, classes)
        self.columns = columns
        self.mend = f"Replace the file, or take that row out of {table}; rows after it then move up"


def file_names(values: Iterable[Any], named: str, root: Path, first_row: int) -> list[str]:
    """The files that some rows name, as paths relative to the table's folder.

    Args:
        values: the column's values, as the file has them.
        named: the table and its column, for messages.
        root: the table's folder.
        first_row: the number of the first row, for messages.

    Raises:
        EdistillError: a value is not text, leads out of the folder, or names no file there.
    """
    return [_file_name(value, named, root, row) for row, value in enumerate(values, start=first_row)]


def _file_name(value: Any, named: str, root: Path, row: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise EdistillError(
            f"{named} is {value!r} at row {row}, which names no file. Give every row a picture's path from the "
            "table's folder, or drop the row."
        )
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value:
        raise EdistillError(
            f"{named} is {value!r} at row {row}, and files are taken from the table's own folder alone. Write paths "
            "from there, and move or link the pictures into it."
        )
    try:
        mode = os.stat(root / path).st_mode  # noqa: PTH116, a link's target
    except OSError as error:
        slashes = " Write paths with /." if "\\" in value else ""
        raise EdistillError(
            f"{named} is {value!r} at row {row}, and {root / path} cannot be read: {error.strerror}.{slashes} Restore "
            "the file, or drop the row."
        ) from None
    if not stat.S_ISREG(mode):
        raise EdistillError(f"{named} is {value!r} at row {row}, and {root / path} is not a file. Name a picture.")
    return path.as_posix()
