"""Writing a cache: whole blocks into parts, and parts joined into records when a file is complete.

Whenever the process dies, what is on disk is a valid cache with some records missing, and a second pass goes
on from the last whole block. The bytes of a record do not depend on where a pass was interrupted.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import FILES, FOLDERS, Drawn, Manifest, Pushed
from ensemble_distill.cache.parts import PARTS, Block, Parts
from ensemble_distill.cache.record_key import AnyKey, InputKey, Key, RecordKey, SampleKey
from ensemble_distill.runtime.files import (
    TEMPORARY,
    is_temporary,
    make_folder,
    remove_file,
    sha256_file,
    write_all,
)

WRITTEN = (*FOLDERS, "notes")  # the folders of a cache that files are written to
BLOCK_ROWS = 4096  # a part is a few seconds of work and one sync to disk
BLOCK_BYTES = 1 << 24  # of each record, at most: a pass holds a block of every member's
PART_BYTES = 1 << 25  # at most, of more than one record: as it is written a part is held some times over
SAVE_EVERY = 1024  # records joined between two saves of the manifest, which grows with their number,
SAVE_BYTES = 1 << 26  # or fewer, that are that large


def blocks(rows: int, batch_size: int, itemsize: int) -> list[Block]:
    """A split cut into blocks of about `BLOCK_ROWS`, or fewer where a row of a record fills many bytes. Batches never
    straddle a block: the last bits of a logit depend on the shape of the batch it was computed in."""
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // itemsize) // batch_size) * batch_size
    return [Block(start, min(start + step, rows)) for start in range(0, rows, step)]


def drop_member(folder: Path, manifest: Manifest, member: str) -> Manifest:
    """The manifest without a member. Its records go, and all parts, whose columns go by members' names."""
    drop_parts(folder)
    left = manifest.without(member)
    for key in manifest.records.keys() - left.records.keys():
        remove_file(key.path(folder), within=folder)
    for made, pushed in left.pushed.items():  # inputs that nobody else has labeled are made again without it
        labeled = any(RecordKey(made.split, other, made.view) in left.records for other in left.names)
        if not labeled and member in dict(pushed.members):
            left = drop_inputs(folder, left, made)
    for drawn in left.drawn:  # so are ids that nobody else was asked about
        if not any(RecordKey(drawn.split, other, drawn.view) in left.records for other in left.names):
            left = drop_drawn(folder, left, drawn)
    return left


def drop_drawn(folder: Path, manifest: Manifest, key: SampleKey) -> Manifest:
    """The manifest without the ids drawn of a view, of which no record is complete. They go, and the parts."""
    drop_parts(folder, key.parts_place)
    remove_file(key.path(folder), within=folder)
    return manifest.without_drawn(key)


def drop_inputs(folder: Path, manifest: Manifest, key: InputKey) -> Manifest:
    """The manifest without the stored inputs of a view. They go, and the parts that they were to be made of."""
    drop_parts(folder, key.place)
    remove_file(key.path(folder), within=folder)
    return manifest.without_inputs(key)


def drop_parts(folder: Path, place: str = "") -> None:
    """Remove what the records of a place (see `Key.place`), or all, were to be joined from."""
    Parts(folder).drop(place)


class Writer:
    """Writes the records of one cache; hold `runtime.lock.one_writer` around its use."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Makes the folder a cache, and first of all makes it where there is none."""
        make_folder(folder)
        self._begin(folder, manifest)
        there = dict(self._present(manifest))
        unanswered = {key: rows for key, rows in manifest.unanswered.items() if key in there}
        self.manifest = replace(manifest, records=there, unanswered=unanswered)
        for path in leftovers(folder):
            remove_file(path, within=folder)
        self.manifest.save(folder)

    def _begin(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest, self._parts = folder, manifest, Parts(folder)

    def _present(self, manifest: Manifest) -> Iterator[tuple[Key, str]]:
        """The noted records whose file is there; a deleted (because damaged) one is computed again, and with inputs or
        ids what was said of them: on another machine they might come out a little different."""
        lost: set[Key] = set()
        for key in manifest.records:
            if not key.path(self.folder).is_file():
                lost.add(key)
                if not isinstance(key, RecordKey):
                    lost |= {RecordKey(key.split, other, key.view) for other in manifest.names}
        return ((key, sha256) for key, sha256 in manifest.records.items() if key not in lost)

    def note_pushed(self, pushed: Mapping[InputKey, Pushed]) -> None:
        """Note how the inputs of views will be made; parts of inputs that were to be made otherwise go."""
        for key in pushed.keys() & self.manifest.pushed.keys():
            self.drop_parts(key.place)
        self.manifest = replace(self.manifest, pushed={**self.manifest.pushed, **pushed})
        self.manifest.save(self.folder)

    def note_drawn(self, drawn: Mapping[SampleKey, Drawn]) -> None:
        """Note how ids will be drawn; parts of ids that were to be drawn otherwise go."""
        for key in drawn.keys() & self.manifest.drawn.keys():
            self.drop_parts(key.parts_place)
        self.manifest = replace(self.manifest, drawn={**self.manifest.drawn, **drawn})
        self.manifest.save(self.folder)

    def pending(self, keys: Sequence[AnyKey]) -> list[AnyKey]:
        """Those whose record is not yet complete."""
        return [key for key in keys if key not in self.manifest.records]

    def cut(self, key: Key, rows: int, batch_size: int) -> list[Block]:
        """The blocks of a record, and of all that stand in its place; they do not depend on how many these are."""
        if isinstance(key, SampleKey):  # as what was said of them, whoever said it
            key = RecordKey(key.split, "", key.view)
        return blocks(rows, batch_size, self.manifest.format_of(key).record.itemsize)

    def together(self, keys: Sequence[AnyKey]) -> list[Sequence[AnyKey]]:
        """The records of one place as they are put, a part each; drawn ids with all that was said of them."""
        if any(isinstance(key, SampleKey) for key in keys):
            return [keys]
        widest = max(self.manifest.format_of(key).record.itemsize for key in keys)
        each = max(1, PART_BYTES // min(BLOCK_BYTES, widest * BLOCK_ROWS))
        return [keys[start : start + each] for start in range(0, len(keys), each)]

    def missing(self, block: Block, keys: Sequence[AnyKey]) -> tuple[AnyKey, ...]:
        """Those of which no whole part holds this block."""
        return tuple(key for key in keys if self._parts.path(block, key) is None)

    def put(self, block: Block, records: Mapping[AnyKey, NDArray[np.void]]) -> None:
        """Store a block of records that stand in one place; on return they survive a crash."""
        self._parts.put(block, records)

    def complete(self, cut: Sequence[Block], keys: Sequence[Key]) -> None:
        """Called when every block was put: where several processes did, they wait for each other."""

    def written(self, key: Key, cut: Sequence[Block]) -> Iterator[tuple[Block, NDArray[np.void]]]:
        """A record block by block, from its parts; every block must have been put."""
        record = self.manifest.format_of(key).record
        for block in cut:
            yield block, self._parts.read(block, key).view(record)

    def join(self, keys: Sequence[Key], rows: int, batch_size: int, later: Sequence[Key] = ()) -> None:
        """Turn the parts of complete records of one place into files, note them in the manifest, drop the parts.

        The manifest is saved as it goes: what it notes is not joined again after a kill.

        Args:
            later: records of the place that are joined later; where there are parts of these, all parts stay.
        """
        if not keys:
            return
        cut = self.cut(keys[0], rows, batch_size)
        largest = max(self.manifest.format_of(key).record.itemsize for key in keys) * rows
        together = max(1, min(SAVE_EVERY, SAVE_BYTES // largest))
        for start in range(0, len(keys), together):
            some = {key: key.path(self.folder) for key in keys[start : start + together]}
            write_all(((path, self._content(key, rows, cut)) for key, path in some.items()), within=self.folder)
            unanswered = {key: self._unanswered(key, cut) for key in some if isinstance(key, RecordKey)}
            self.manifest = self.manifest.with_records(
                {key: sha256_file(path) for key, path in some.items()}, unanswered
            )
            self.manifest.save(self.folder)
        if not any(self._parts.path(block, key) for key in later for block in cut):
            for place in {key.parts_place for key in keys}:
                self.drop_parts(place)

    def _content(self, key: Key, rows: int, cut: Sequence[Block]) -> Iterator[bytes]:
        """A record's file, piece by piece."""
        yield _npy_header(self.manifest.format_of(key).record, rows)
        for _, records in self.written(key, cut):
            yield records.tobytes()

    def _unanswered(self, key: RecordKey, cut: Sequence[Block]) -> int:
        """How many rows of a record its member does not answer."""
        form = self.manifest.format_of(key)
        return sum(form.unanswered(records) for _, records in self.written(key, cut))

    def drop_parts(self, place: str) -> None:
        """Remove what the records of a place were joined from."""
        self._parts.drop(place)


def _npy_header(record: np.dtype[np.void], rows: int) -> bytes:
    """So that any numpy opens a record, without this package."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (rows,)}
    )
    return header.getvalue()


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of writes that never finished, also of version 0.1.0: harmless, removed by the next pass."""
    beside = [path for path in folder.glob(f"*{TEMPORARY}") if is_temporary(path) or path.stem in FILES]
    return [
        *beside,
        *(path for path in _below(folder, *WRITTEN) if path.name.endswith(TEMPORARY)),
    ]


def unneeded(folder: Path) -> list[Path]:
    """What a complete cache still holds of the pass that made it."""
    return [*leftovers(folder), *_below(folder, PARTS)]


def clean(folder: Path) -> None:
    """Remove what is unneeded; nothing is touched where there is nothing."""
    if unneeded(folder):
        drop_parts(folder)
        for path in leftovers(folder):
            remove_file(path, within=folder)


def _below(folder: Path, *names: str) -> list[Path]:
    """The files in folders of these names; links to folders in them are not followed."""
    walks = itertools.chain.from_iterable(os.walk(folder / name) for name in names)
    return sorted(Path(here, file) for here, _, files in walks for file in files)
