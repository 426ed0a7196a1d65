"""Tar shards as WebDataset writes them: a folder of `.tar` files, a single one, or `shards/{000..009}.tar`.

The archives' headers say where each row lies, and rows are read there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensemble_distill.data.columns import Columns
from ensemble_distill.data.decoding import read_image
from ensemble_distill.data.digests import contents_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.folders import SHARD, is_sharded, shards_in
from ensemble_distill.data.notes import Note
from ensemble_distill.data.patterns import files_of
from ensemble_distill.data.pictures import Pictures
from ensemble_distill.data.shard_headers import Headers
from ensemble_distill.data.shard_rows import EXTENSIONS, read_at
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.table_rows import TableRows
from ensemble_distill.data.tar_index import Placed
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import InputColumns
from ensemble_distill.tasks import Task

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABEL = "cls"  # the extension of labels if no other is declared


class TarPictures(Pictures):
    """Pictures in tar archives.

    Args:
        shards: the archives.
        at: (N,) the index of each row's archive.
        placed: where each row lies in its archive.
        labels, classes, remarks: see `Pictures`.
        columns: the columns that a row is made of; None if none are declared.

    Attributes:
        note: the note on the archives' headers, to be kept.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        at: Array,
        placed: Sequence[Placed],
        labels: Array | None,
        classes: tuple[str, ...] | None,
        columns: InputColumns | None,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(len(placed), labels, classes, remarks)
        self.shards, self.at, self.columns = tuple(shards), at, columns
        self.note: Note | None = None
        self.names = tuple(one.name for one in placed)
        self._offsets, self._sizes = (np.array([one[field] for one in placed], np.int64) for field in (1, 2))

    def name(self, row: int) -> str:
        return self.names[row]

    def _decoded(self, row: int) -> Array:
        return read_image(io.BytesIO(self._content(row)))

    def _undecodable(self, row: int, error: Exception) -> str:
        return (
            f"{self.shards[self.at[row]]}: {self.names[row]} (row {row}) does not decode: {error}. Write the "
            "shard without it; rows after it then move up, so a cache made before no longer fits."
        )

    def _content(self, row: int) -> bytes:
        placed = Placed(self.names[row], int(self._offsets[row]), int(self._sizes[row]))
        return read_at(self.shards[self.at[row]], placed)

    def _digested(self) -> tuple[str, str]:
        files = zip(self.names, self._sizes.tolist(), strict=True)
        return contents_digest(files, self._content, self.labels, self.classes)


def claims(source: str) -> bool:
    return (source.endswith((SHARD, *PACKED)) and not is_folder(source)) or is_sharded(source)


def load(entry: Entry, task: type[Task]) -> Source:
    """The pictures of all shards, one after the other, and their labels, by default from `.cls` files.

    Raises:
        EdistillError: there are no samples; an archive is compressed or damaged; a sample has no picture or several;
            or only some samples have labels.
    """
    entry.refuse_names()
    shards = _shards(entry.source)
    declared = entry.columns
    if declared is not None and declared.parts != ("images",):
        key = next(key for key in declared.parts if key != "images")
        raise EdistillError(
            f"{entry.source} holds pictures alone, and data.columns.{key} says that rows are made of "
            f"{first_few(declared.inputs or [declared.told])}. Name the pictures' extension, data.columns.images, or "
            "leave it out; of pictures beside numbers make a table (.csv, .parquet) that names them."
        )
    wanted = declared or Columns(images=EXTENSIONS[0], labels=(LABEL,))
    note = Note.taken(entry.notes, shards, None if declared is None else declared.images, wanted.labels)
    headers = note.headers
    if not headers.placed:
        raise EdistillError(f"{entry.source} holds no samples: files with a name and an extension. Write it again.")
    rows = TableRows(
        wanted, Path(entry.source), Path(entry.source), wanted.labels if headers.labeled else (), elsewhere=True
    )
    labels, classes = rows.read(headers.blocks()).labels(task)
    remarks = _remarks(entry.source, headers) if declared is None and labels is None else ()
    asked = None if declared is None else declared.asked
    source = TarPictures(shards, np.array(headers.at), headers.placed, labels, classes, asked, remarks)
    source.note = note
    return source


def _remarks(source: str, headers: Headers) -> tuple[str, ...]:
    """A remark on files that could be the missing labels."""
    if not headers.others:
        return ()
    others = sorted(headers.others)
    example = f"{others[0]}.KEY" if others[0] == "json" else others[0]
    return (
        f"{source} has no .{LABEL}, so its rows have no labels, and .{' and .'.join(others[:4])} beside the pictures "
        f'is not read. If those are labels, name them: data.columns = {{ images = "jpg", labels = ["{example}"] }}.',
    )


def _shards(source: str) -> list[Path]:
    """The archives in their order. Raises EdistillError if one is missing or compressed."""
    if source.endswith(PACKED):
        raise EdistillError(
            f"{source} is packed, and rows are read at their places, which nothing tells in a packed archive. Unpack "
            f"it once, to a {SHARD}."
        )
    if is_folder(source):
        return shards_in(source)
    return files_of(source)
