"""Writing a cache: whole blocks into parts, and parts joined into a record once it is complete.

Whenever the process dies, the files on disk are a valid cache with some records missing, and a second pass resumes
after the last whole block. The bytes of a record do not depend on where a pass was interrupted.
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

WRITTEN = (*FOLDERS, "notes")  # folders of a cache that files are written to
BLOCK_ROWS = 4096  # a part is a few seconds of work and one sync to disk
BLOCK_BYTES = 1 << 24  # maximum per record: a pass holds one block of every member
PART_BYTES = 1 << 25  # maximum for a part of several records: while it is written, memory holds it several times
SAVE_EVERY = 1024  # records to join between two saves of the manifest, which grows with their number,
SAVE_BYTES = 1 << 26  # or fewer, if they reach this size


def blocks(rows: int, batch_size: int, itemsize: int) -> list[Block]:
    """A split cut into blocks of about `BLOCK_ROWS` rows, fewer if a row of a record has many bytes.

    Batches never straddle a block: the last bits of a logit depend on the shape of the batch it was computed in.
    """
    step = max(1, min(BLOCK_ROWS, BLOCK_BYTES // itemsize) // batch_size) * batch_size
    return [Block(start, min(start + step, rows)) for start in range(0, rows, step)]


def drop_member(folder: Path, manifest: Manifest, member: str) -> Manifest:
    """Remove a member's records, and return the manifest without them.

    All parts are removed, too, since their columns go by members' names.
    """
    drop_parts(folder)
    left = manifest.without(member)
    for key in manifest.records.keys() - left.records.keys():
        remove_file(key.path(folder), within=folder)
    for made, pushed in left.pushed.items():  # inputs that no other member has labeled are made again without this one
        labeled = any(RecordKey(made.split, other, made.view) in left.records for other in left.names)
        if not labeled and member in dict(pushed.members):
            left = drop_inputs(folder, left, made)
    for drawn in left.drawn:  # ids at which no other member has answered are drawn again
        if not any(RecordKey(drawn.split, other, drawn.view) in left.records for other in left.names):
            left = drop_drawn(folder, left, drawn)
    return left


def drop_drawn(folder: Path, manifest: Manifest, key: SampleKey) -> Manifest:
    """Remove the ids drawn for a view without complete records, and the parts. Returns the manifest without them."""
    drop_parts(folder, key.parts_place)
    remove_file(key.path(folder), within=folder)
    return manifest.without_drawn(key)


def drop_inputs(folder: Path, manifest: Manifest, key: InputKey) -> Manifest:
    """Remove the stored inputs of a view, and their parts. Returns the manifest without them."""
    drop_parts(folder, key.place)
    remove_file(key.path(folder), within=folder)
    return manifest.without_inputs(key)


def drop_parts(folder: Path, place: str = "") -> None:
    """Remove the parts of one place (see `Key.place`), or all parts."""
    Parts(folder).drop(place)


class Writer:
    """Writes the records of one cache; hold `runtime.lock.one_writer` while using it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open the cache in `folder`, creating it if needed.

        Records whose file is gone are forgotten, and leftovers are removed.
        """
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
        """The noted records whose file exists; a damaged record that somebody deleted is computed again.

        With lost inputs or ids, the members' answers to them are lost too: on another machine they might come out
        slightly different.
        """
        lost: set[Key] = set()
        for key in manifest.records:
            if not key.path(self.folder).is_file():
                lost.add(key)
                if not isinstance(key, RecordKey):
                    lost |= {RecordKey(key.split, other, key.view) for other in manifest.names}
        return ((key, sha256) for key, sha256 in manifest.records.items() if key not in lost)

    def note_pushed(self, pushed: Mapping[InputKey, Pushed]) -> None:
        """Note how the inputs of views will be made; parts of inputs with an earlier note are dropped."""
        for key in pushed.keys() & self.manifest.pushed.keys():
            self.drop_parts(key.place)
        self.manifest = replace(self.manifest, pushed={**self.manifest.pushed, **pushed})
        self.manifest.save(self.folder)

    def note_drawn(self, drawn: Mapping[SampleKey, Drawn]) -> None:
        """Note how ids will be drawn; parts of ids with an earlier note are dropped."""
        for key in drawn.keys() & self.manifest.drawn.keys():
            self.drop_parts(key.parts_place)
        self.manifest = replace(self.manifest, drawn={**self.manifest.drawn, **drawn})
        self.manifest.save(self.folder)

    def pending(self, keys: Sequence[AnyKey]) -> list[AnyKey]:
        """The keys whose record is not complete yet."""
        return [key for key in keys if key not in self.manifest.records]

    def cut(self, key: Key, rows: int, batch_size: int) -> list[Block]:
        """The blocks of a record, the same for all records of its place, however many these are."""
        if isinstance(key, SampleKey):  # the blocks of members' answers at the ids
            key = RecordKey(key.split, "", key.view)
        return blocks(rows, batch_size, self.manifest.format_of(key).record.itemsize)

    def together(self, keys: Sequence[AnyKey]) -> list[Sequence[AnyKey]]:
        """The records of one place, grouped by the parts they are put into; drawn ids go with all answers at them."""
        if any(isinstance(key, SampleKey) for key in keys):
            return [keys]
        widest = max(self.manifest.format_of(key).record.itemsize for key in keys)
        each = max(1, PART_BYTES // min(BLOCK_BYTES, widest * BLOCK_ROWS))
        return [keys[start : start + each] for start in range(0, len(keys), each)]

    def missing(self, block: Block, keys: Sequence[AnyKey]) -> tuple[AnyKey, ...]:
        """The keys for which no intact part holds this block."""
        return tuple(key for key in keys if self._parts.path(block, key) is None)

    def put(self, block: Block, records: Mapping[AnyKey, NDArray[np.void]]) -> None:
        """Store a block of records of one place; on return it survives a crash."""
        self._parts.put(block, records)

    def complete(self, cut: Sequence[Block], keys: Sequence[Key]) -> None:
        """Called once every block has been put; several processes wait for each other here."""

    def written(self, key: Key, cut: Sequence[Block]) -> Iterator[tuple[Block, NDArray[np.void]]]:
        """A record block by block, from its parts; every block must have been put."""
        record = self.manifest.format_of(key).record
        for block in cut:
            yield block, self._parts.read(block, key).view(record)

    def join(self, keys: Sequence[Key], rows: int, batch_size: int, later: Sequence[Key] = ()) -> None:
        """Join the parts of complete records of one place into files, note them in the manifest, and drop the parts.

        The manifest is saved in between, so that records it notes are not joined again after a kill.

        Args:
            later: records of the place to join later; if any of these have parts, all parts stay.
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
        """The bytes of a record's file, piece by piece."""
        yield _npy_header(self.manifest.format_of(key).record, rows)
        for _, records in self.written(key, cut):
            yield records.tobytes()

    def _unanswered(self, key: RecordKey, cut: Sequence[Block]) -> int:
        """The number of rows that the member of a record leaves unanswered."""
        form = self.manifest.format_of(key)
        return sum(form.unanswered(records) for _, records in self.written(key, cut))

    def drop_parts(self, place: str) -> None:
        """Remove the parts of one place."""
        self._parts.drop(place)


def _npy_header(record: np.dtype[np.void], rows: int) -> bytes:
    """An .npy header, so that any NumPy opens a record without this package."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (rows,)}
    )
    return header.getvalue()


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of unfinished writes, including those of version 0.1.0.

    They are harmless; the next pass removes them.
    """
    beside = [path for path in folder.glob(f"*{TEMPORARY}") if is_temporary(path) or path.stem in FILES]
    return [
        *beside,
        *(path for path in _below(folder, *WRITTEN) if path.name.endswith(TEMPORARY)),
    ]


def unneeded(folder: Path) -> list[Path]:
    """Files of a pass that a complete cache still holds and does not need."""
    return [*leftovers(folder), *_below(folder, PARTS)]


def clean(folder: Path) -> None:
    """Remove what is unneeded; write nothing if there is nothing."""
    if unneeded(folder):
        drop_parts(folder)
        for path in leftovers(folder):
            remove_file(path, within=folder)


def _below(folder: Path, *names: str) -> list[Path]:
    """The files below folders of these names; links to folders are not followed."""
    walks = itertools.chain.from_iterable(os.walk(folder / name) for name in names)
    return sorted(Path(here, file) for here, _, files in walks for file in files)
