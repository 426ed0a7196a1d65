"""Tar shards as WebDataset writes them: a folder of `.tar`, one, or `shards/{000..009}.tar`. Rows are read at their
places, which the archives' headers tell."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ensemble_distill.data.columns import Columns
from ensemble_distill.data.decoding import read_image
from ensemble_distill.data.digests import contents_digest
from ensemble_distill.data.entry import Entry
from ensemble_distill.data.folders import SHARD, is_sharded, shards_in
from ensemble_distill.data.patterns import files_of
from ensemble_distill.data.pictures import Pictures
from ensemble_distill.data.shard_rows import EXTENSIONS, Sample, read_at, samples_in
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.table_rows import TableRows
from ensemble_distill.data.tar_index import Placed
from ensemble_distill.data.walk import is_folder
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import InputColumns
from ensemble_distill.tasks import Task

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABEL = "cls"  # the extension that says a class where nothing else is declared
LARGEST = 2**30  # bytes of a picture's file
BLOCK = 1 << 14  # rows whose labels are read at once


class TarPictures(Pictures):
    """Pictures in tar archives.

    Args:
        shards: the archives.
        at: (N,) which of them each row is in.
        placed: where each row lies there.
        labels, classes, remarks: see `Pictures`.
        columns: what a row is made of.
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
    """The pictures of all shards, one behind the other, and their labels: by default what `.cls` says.

    Raises:
        EdistillError: there are none, or one is packed or damaged; a sample has no picture or no label, or several.
    """
    entry.refuse_names()
    shards = _shards(entry.source)
    declared = entry.columns
    if declared is not None and declared.images is None:
        raise EdistillError(
            f"{entry.source} holds pictures, and data.columns.inputs says that rows are made of "
            f"{first_few(declared.inputs)}. Name the pictures' extension, data.columns.images, or leave it out."
        )
    column = None if declared is None else declared.images
    at, placed, labeled = [], [], _Labels(declared, entry.source)
    numbers = {shard: number for number, shard in enumerate(shards)}
    for sample in samples_in(shards):
        picture = sample.picture(column)
        if picture.size > LARGEST:
            raise EdistillError(f"{sample.shard}: {picture.name} has {picture.size:,} bytes, and no picture has.")
        at.append(numbers[sample.shard])
        placed.append(picture)
        labeled.add(sample)
    if not placed:
        raise EdistillError(f"{entry.source} holds no samples: files with a name and an extension. Write it again.")
    labels, classes = labeled.rows.read(labeled.blocks()).labels(task)
    asked = None if declared is None else declared.asked
    return TarPictures(shards, np.array(at), placed, labels, classes, asked, labeled.remarks(labels))


class _Labels:
    """What samples say of their labels, gathered as their headers are read."""

    def __init__(self, declared: Columns | None, named: str) -> None:
        self.declared = declared or Columns(images=EXTENSIONS[0], labels=(LABEL,))
        self.named = named
        self.asked = declared is not None
        self.texts: dict[str, list[str | int | float | bool]] = {name: [] for name in self.declared.labels}
        self.count = 0
        self.others: set[str] = set()
        self.labeled: bool | None = None  # whether the first sample is

    def add(self, sample: Sample) -> None:
        """Reads the labels of a sample; of data whose first one has none nobody has."""
        if self.labeled is None:
            has = {name.partition(".")[0] if name.startswith("json.") else name for name in self.texts}
            self.labeled = bool(has & sample.files.keys())
        self.count += 1
        self.others |= sample.files.keys() - {*EXTENSIONS, *self.texts}
        if not self.labeled:
            if any(name in sample.files for name in self.texts):
                raise EdistillError(
                    f"{sample.shard}: sample {sample.key} has a label, and the first one has none. Give every sample "
                    "one, or none."
                )
            return
        for name, texts in self.texts.items():
            texts.append(sample.text(name))

    @property
    def rows(self) -> TableRows:
        names = list(self.texts) if self.labeled else []
        return TableRows(self.declared, Path(self.named), Path(self.named), names, others=True)

    def blocks(self) -> Iterator[dict[str, list[str | int | float | bool]]]:
        for start in range(0, self.count, BLOCK):
            yield {name: texts[start : start + BLOCK] for name, texts in self.texts.items()}

    def remarks(self, labels: Array | None) -> tuple[str, ...]:
        """Of samples without labels, which of their files could be them."""
        if labels is not None or self.asked or not self.others:
            return ()
        other = sorted(self.others)[0]
        example = f"{other}.KEY" if other == "json" else other
        return (
            f"{self.named} has no .{LABEL}, so its rows have no labels, and .{' and .'.join(sorted(self.others)[:4])} "
            f'beside the pictures is not read. If those are labels, name them: data.columns = {{ images = "jpg", '
            f'labels = ["{example}"] }}.',
        )


def _shards(source: str) -> list[Path]:
    """The archives in their order. Raises EdistillError where one is missing or packed."""
    if source.endswith(PACKED):
        raise EdistillError(
            f"{source} is packed, and rows are read at their places, which nothing tells in a packed archive. Unpack "
            f"it once, to a {SHARD}."
        )
    if is_folder(source):
        return shards_in(source)
    return files_of(source)
