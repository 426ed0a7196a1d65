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

from ensemble_distill.cache.manifest import FILES, INPUT, INPUTS, Manifest, Pushed, key
from ensemble_distill.cache.parts import PARTS, Block, Column, Parts
from ensemble_distill.runtime.files import (
    TEMPORARY,
    is_temporary,
    make_folder,
    remove_file,
    remove_tree,
    sha256_file,
    write_all,
)

BLOCK_ROWS = 4096  # a part is a few seconds of work and one sync to disk
SAVE_EVERY = 1024  # records joined between two saves of the manifest, which grows with their number,
SAVE_BYTES = 1 << 26  # or fewer, that are that large


def blocks(rows: int, batch_size: int) -> list[Block]:
    """A split cut into blocks of about `BLOCK_ROWS`. Batches never straddle a block: the last bits of a
    logit depend on the shape of the batch it was computed in."""
    step = max(1, BLOCK_ROWS // batch_size) * batch_size
    return [Block(start, min(start + step, rows)) for start in range(0, rows, step)]


def record_path(folder: Path, split: str, member: str, view: int) -> Path:
    return folder / "records" / split / f"{member}.v{view}.npy"


def drop_member(folder: Path, manifest: Manifest, member: str) -> Manifest:
    """The manifest without a member. Its records go, and all parts, whose columns go by members' names."""
    remove_tree(folder / PARTS, within=folder)
    left = manifest.without(member)
    for name in manifest.records.keys() - left.records.keys():
        split, _, view = name.rsplit("/", 2)
        remove_file(record_path(folder, split, member, int(view)), within=folder)
    for name, pushed in left.pushed.items():  # inputs that nobody else has labeled are made again without it
        split, view = name.rsplit("/", 1)
        labeled = any(key(split, other, int(view)) in left.records for other in left.names)
        if not labeled and member in dict(pushed.members):
            left = drop_inputs(folder, left, split, int(view))
    return left


def drop_inputs(folder: Path, manifest: Manifest, split: str, view: int) -> Manifest:
    """The manifest without the stored inputs of a view. They go, and the parts that they were to be made of."""
    drop_parts(folder, f"{INPUTS}/{split}")
    remove_file(record_path(folder, f"{INPUTS}/{split}", INPUT, view), within=folder)
    return manifest.without_inputs(split, view)


def drop_parts(folder: Path, split: str = "") -> None:
    """Remove what the records of a split, or of all, were to be joined from."""
    Parts(folder).drop(split)


class Writer:
    """Writes the records of one cache; hold `runtime.lock.one_writer` around its use."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Makes the folder a cache, and first of all makes it where there is none."""
        make_folder(folder)
        self.folder = folder
        self.manifest = replace(manifest, records=dict(self._present(manifest)))
        self._parts = Parts(folder)
        for path in leftovers(folder):
            remove_file(path, within=folder)
        self.manifest.save(folder)

    def _present(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """The noted records whose file is there; a deleted (because damaged) one is computed again, and with inputs
        what was said of them: on another machine they might come out a little different."""
        lost = set()
        for name in manifest.records:
            split, member, view = name.rsplit("/", 2)
            if not record_path(self.folder, split, member, int(view)).is_file():
                lost.add(name)
                if split.startswith(f"{INPUTS}/"):
                    lost |= {key(split.removeprefix(f"{INPUTS}/"), other, int(view)) for other in manifest.names}
        return ((name, sha256) for name, sha256 in manifest.records.items() if name not in lost)

    def note_pushed(self, split: str, pushed: Mapping[int, Pushed]) -> None:
        """Note how the inputs of views will be made; parts of inputs that were to be made otherwise go."""
        noted = {f"{split}/{view}": one for view, one in pushed.items()}
        if noted.keys() & self.manifest.pushed.keys():
            self.drop_parts(f"{INPUTS}/{split}")
        self.manifest = replace(self.manifest, pushed={**self.manifest.pushed, **noted})
        self.manifest.save(self.folder)

    def pending(self, split: str, columns: Sequence[Column]) -> list[Column]:
        """The columns whose record is not yet complete."""
        return [(m, v) for m, v in columns if key(split, m, v) not in self.manifest.records]

    def missing(self, split: str, block: Block, columns: Sequence[Column]) -> tuple[Column, ...]:
        """The columns that no whole part of this block holds."""
        held = self._parts.holding(split, block)
        return tuple(column for column in columns if column not in held)

    def put(self, split: str, block: Block, records: Mapping[Column, NDArray[np.void]]) -> None:
        """Store a block's records; on return they survive a crash."""
        self._parts.put(split, block, records)

    def written(self, split: str, column: Column, cut: Sequence[Block]) -> Iterator[tuple[Block, NDArray[np.void]]]:
        """A column's records block by block, from its parts; every block must have been put."""
        record = self.manifest.record_of(split, column[1])
        for block in cut:
            yield block, self._parts.read(split, block, column).view(record)

    def join(self, split: str, columns: Sequence[Column], rows: int, batch_size: int) -> None:
        """Turn the parts of complete columns into records, note them in the manifest, drop the parts.

        The manifest is saved as it goes: what it notes is not joined again after a kill.
        """
        cut = blocks(rows, batch_size)
        largest = max((self.manifest.record_of(split, view).itemsize for _, view in columns), default=1) * rows
        together = max(1, min(SAVE_EVERY, SAVE_BYTES // largest))
        for start in range(0, len(columns), together):
            some = {column: record_path(self.folder, split, *column) for column in columns[start : start + together]}
            contents = ((path, self._content(split, column, rows, cut)) for column, path in some.items())
            write_all(contents, within=self.folder)
            joined = {key(split, *column): sha256_file(path) for column, path in some.items()}
            self.manifest = self.manifest.with_records(joined)
            self.manifest.save(self.folder)
        self.drop_parts(split)

    def _content(self, split: str, column: Column, rows: int, cut: Sequence[Block]) -> Iterator[bytes]:
        """A record's file, piece by piece."""
        yield _npy_header(self.manifest.record_of(split, column[1]), rows)
        for _, records in self.written(split, column, cut):
            yield records.tobytes()

    def drop_parts(self, split: str) -> None:
        """Remove what a split's records were joined from."""
        self._parts.drop(split)


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
    return [*beside, *(path for path in _below(folder, "records", PARTS, "replay") if path.name.endswith(TEMPORARY))]


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
