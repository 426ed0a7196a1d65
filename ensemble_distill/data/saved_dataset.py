"""Data sets that the Hugging Face library `datasets` saved, in Arrow or Parquet files, read without that library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_distill.data.arrow_parts import Parts, are_pictures
from ensemble_distill.data.arrow_shards import Shards
from ensemble_distill.data.decoding import read_image
from ensemble_distill.data.digests import contents_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.folders import INFO, OF_SPLITS, STATE, is_saved
from ensemble_distill.data.hf_features import Features
from ensemble_distill.data.pictures import Pictures
from ensemble_distill.data.reading_arrow import arrow_schema, is_parquet
from ensemble_distill.data.row_groups import RowGroups
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.table_rows import TableRows
from ensemble_distill.data.walk import there
from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.facts import InputColumns
from ensemble_distill.runtime.jsons import parse_json, read_json
from ensemble_distill.tasks import Task

AGAIN = "Save the data set again, with save_to_disk."


class ArrowPictures(Pictures):
    """Pictures in a column of Arrow or Parquet files.

    Args:
        parts: the files.
        named: their path, for messages.
        column: the column of the pictures.
        labels, classes, remarks: see `Pictures`.
        columns: the columns that a row is made of.
    """

    def __init__(
        self,
        parts: Parts,
        named: Path,
        column: str,
        labels: Array | None,
        classes: tuple[str, ...] | None,
        columns: InputColumns,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(len(parts), labels, classes, remarks)
        self.parts, self.column, self.named, self.columns = parts, column, named, columns

    def name(self, row: int) -> str:
        return f"row {row}"

    def _decoded(self, row: int) -> Array:
        return read_image(self._content(row))

    def _undecodable(self, row: int, error: Exception) -> str:
        return (
            f"{self.named}: {self.column} of row {row} does not decode: {error}. Drop that row, "
            "and save the data set again."
        )

    def _content(self, row: int) -> Any:
        content, path = self.parts.picture(self.column, row)
        if content is None:
            beside = f", and names {path}, which is not in it" if path else ""
            raise EdistillError(
                f"{self.named}: {self.column} of row {row} holds no picture{beside}. Save the data "
                "set again with its files embedded (dataset.cast_column of Image(decode=False), and the bytes read "
                "in), or drop that row."
            )
        return content

    def _digested(self) -> tuple[str, str]:
        files = ((f"row {row}", size) for row, size in enumerate(self.parts.sizes(self.column)))
        return contents_digest(files, lambda row: self._content(row).read(), self.labels, self.classes)


def claims(source: str) -> bool:
    return is_saved(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The data set that `save_to_disk` wrote: pictures of an Image column, or what the declared columns hold.

    Raises:
        EdistillError: it is several splits, or damaged; its columns must be declared, or are not as declared.
    """
    entry.refuse_names()
    folder = Path(entry.source)
    if not there(folder / STATE):
        raise _several(folder)
    shards = Shards(_files(folder))
    return source_of(shards, Features.of(_json(folder / INFO), str(folder / INFO)), folder, entry, task)


def undeclared(folder: str | Path) -> list[str] | None:
    """The names of a data set's columns if they must be declared; None if its record says which to use."""
    info = Path(folder) / INFO
    features = Features.of(_json(info), str(info))
    try:
        features.settled(None, str(folder))
    except EdistillError:
        return list(features.told)
    return None


def of_files(paths: Sequence[Path], entry: Entry, task: type[Task]) -> Source | None:
    """The rows of Arrow or Parquet files that record their columns or hold the declared pictures; None for any other.

    `datasets` leaves files with recorded columns in its cache and on the hub.

    Raises:
        EdistillError: as `load` does.
    """
    schema = arrow_schema(paths[0])
    said = _said(schema)
    images = None if entry.columns is None else entry.columns.images
    if said is None and (images not in schema.names or not are_pictures(schema.field(images).type)):
        return None
    features = Features() if said is None else Features.of(said, str(paths[0]))
    return source_of((RowGroups if is_parquet(paths[0]) else Shards)(paths), features, Path(entry.source), entry, task)


def says_columns(schema: Any, named: Path) -> bool:
    """Whether a file's schema says which of its columns to use, so that none must be declared."""
    said = _said(schema)
    if said is None:
        return False
    try:
        Features.of(said, str(named)).settled(None, str(named))
    except EdistillError:
        return False
    return True


def _said(schema: Any) -> Any:
    """What `datasets` recorded in a file about its columns; None if there is no such record."""
    try:
        return parse_json((schema.metadata or {})[b"huggingface"])["info"]
    except (KeyError, TypeError, ValueError):
        return None


def source_of(parts: Parts, features: Features, named: Path, entry: Entry, task: type[Task]) -> Source:
    """The source of the rows of some files. Raises as `load` does."""
    if not len(parts):
        raise EdistillError(f"{named} has no rows. Give a data set with at least one.")
    folder = parts.paths[0].parent
    declared = features.settled(entry.columns, str(named))
    names = declared.read(parts.header, str(named))
    remarks = []
    if (empty := _unlabeled(parts, features, [name for name in names if name in declared.labels])) is not None:
        remarks.append(f"{named}: {empty} is −1 in every row, which says that there are no labels.")
        declared, names = replace(declared, labels=()), tuple(name for name in names if name != empty)
    pictures = declared.images
    if pictures is None or not (pictures in features.pictures or parts.holds_pictures(pictures)):
        blocks = parts.blocks(names, features.named(declared))
        return TableRows(declared, named, folder, names).read(blocks).source(task)
    parts.refuse_no_pictures(pictures)
    if isinstance(parts, RowGroups) and (slow := parts.slow(pictures)) is not None:
        remarks.append(slow)
    column = pictures

    def pictured(labels: Array | None, classes: tuple[str, ...] | None) -> Source:
        return ArrowPictures(parts, named, column, labels, classes, declared.asked, remarks)

    rows = TableRows(declared, named, folder, [name for name in names if name != pictures], elsewhere=True)
    return rows.read(parts.blocks(rows.names, features.named(declared))).source(task, pictured)


def _unlabeled(parts: Parts, features: Features, labels: Sequence[str]) -> str | None:
    """The label column if no row has a class, as in a test set whose labels are held back; otherwise None."""
    if len(labels) != 1 or labels[0] not in features.labels:
        return None
    return labels[0] if parts.lacks(labels[0]) else None


def _several(folder: Path) -> EdistillError:
    record = _json(folder / OF_SPLITS)
    splits = record.get("splits") if isinstance(record, dict) else None
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    one = folder / (names[0] if names else "train")
    return EdistillError(
        f"{folder} holds the splits {first_few(names) or 'that it does not name'}. Name the folder of one for "
        f"data.train, as {one}, and others for data.validation and data.test."
    )


def _files(folder: Path) -> list[Path]:
    """The shards in their order.

    Raises:
        EdistillError: `state.json` names no files, files elsewhere or missing ones, or a selection of rows.
    """
    record = _json(folder / STATE)
    files = record.get("_data_files") if isinstance(record, dict) else None
    found = [one.get("filename") if isinstance(one, Mapping) else None for one in files or ()]
    names = [name for name in found if isinstance(name, str)]
    if not names or len(names) < len(found):
        raise EdistillError(f"{folder / STATE} names no files. {AGAIN}")
    if record.get("_indices_files"):
        raise EdistillError(
            f"{folder / STATE} says that some of its rows are taken, in an order of its own. Save it again with "
            "dataset.flatten_indices().save_to_disk."
        )
    for name in names:
        if Path(name).name != name:
            raise EdistillError(f"{folder / STATE} names {name!r}, which is not a file in {folder}. {AGAIN}")
        if not (folder / name).is_file():
            raise EdistillError(f"{folder} lacks {name}, which its {STATE} names. Restore it.")
    return [folder / name for name in names]


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise EdistillError(f"{path} cannot be read: {first_line(error)}. {AGAIN}") from None
