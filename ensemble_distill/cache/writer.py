"""Writing a cache: whole blocks into parts, and parts joined into records when a file is complete.

Whenever the process dies, what is on disk is a valid cache with some records missing, and a second pass goes
on from the last whole block. The bytes of a record do not depend on where a pass was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ensemble_distill.cache.manifest import FILES, INPUT, INPUTS, Manifest, Pushed, key
from ensemble_distill.runtime.files import TEMPORARY, sha256_file, write_whole

BLOCK_ROWS = 4096  # a part is a few seconds of work and one sync to disk

Column = tuple[str, int]  # a member's name and a view


@dataclass(frozen=True)
class Block:
    """Rows start to stop − 1, a whole number of batches (but for the split's end)."""

    start: int
    stop: int

    def batches(self, size: int) -> list[range]:
        return [range(i, min(i + size, self.stop)) for i in range(self.start, self.stop, size)]


def blocks(rows: int, batch_size: int) -> list[Block]:
    """A split cut into blocks of about `BLOCK_ROWS`. Batches never straddle a block: the last bits of a
    logit depend on the shape of the batch it was computed in."""
    step = max(1, BLOCK_ROWS // batch_size) * batch_size
    return [Block(start, min(start + step, rows)) for start in range(0, rows, step)]


def record_path(folder: Path, split: str, member: str, view: int) -> Path:
    return folder / "records" / split / f"{member}.v{view}.npy"


def drop_member(folder: Path, manifest: Manifest, member: str) -> Manifest:
    """The manifest without a member. Its records go, and all parts, whose columns go by members' names."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
    for name in manifest.records.keys() - manifest.without(member).records.keys():
        split, _, view = name.rsplit("/", 2)
        record_path(folder, split, member, int(view)).unlink(missing_ok=True)
    manifest = manifest.without(member)
    for name, pushed in manifest.pushed.items():  # inputs that nobody else has labeled are made again without it
        split, view = name.rsplit("/", 1)
        labeled = any(key(split, other, int(view)) in manifest.records for other in manifest.names)
        if not labeled and member in dict(pushed.members):
            manifest = drop_inputs(folder, manifest, split, int(view))
    return manifest


def drop_inputs(folder: Path, manifest: Manifest, split: str, view: int) -> Manifest:
    """The manifest without the stored inputs of a view. They go, and the parts that they were to be made of."""
    shutil.rmtree(folder / "parts" / INPUTS / split, ignore_errors=True)
    record_path(folder, f"{INPUTS}/{split}", INPUT, view).unlink(missing_ok=True)
    return manifest.without_inputs(split, view)


class Writer:
    """Writes the records of one cache; hold `runtime.lock.one_writer` around its use."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = replace(manifest, records=dict(self._present(manifest)))
        self._held: dict[Path, list[Column]] = {}  # of the parts known to be whole: each is hashed once
        for path in leftovers(folder):
            path.unlink()
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
        held = {column for _, found in self._parts(split, block) for column in found}
        return tuple(column for column in columns if column not in held)

    def put(self, split: str, block: Block, records: Mapping[Column, NDArray[np.void]]) -> None:
        """Store a block's records; on return they survive a crash."""
        tensors = {f"{m}/{v}": values.view(np.uint8).reshape(-1) for (m, v), values in records.items()}
        for (member, view), values in records.items():
            if len(values) != block.stop - block.start:
                raise ValueError(f"{member} view {view}: {len(values)} records for {block}")
        identity = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:8]
        path = self._part_folder(split) / f"{block.start:010d}-{block.stop:010d}-{identity}.safetensors"
        write_whole(path, save(tensors, metadata={"sha256": _digest(tensors)}))
        self._held[path] = list(records)

    def written(self, split: str, column: Column, cut: Sequence[Block]) -> Iterator[tuple[Block, NDArray[np.void]]]:
        """A column's records block by block, from its parts; every block must have been put."""
        record = self.manifest.record_of(split, column[1])
        name = f"{column[0]}/{column[1]}"
        for block in cut:
            path = next(path for path, found in self._parts(split, block) if column in found)
            with safe_open(path, framework="numpy") as part:
                yield block, part.get_tensor(name).view(record)

    def join(self, split: str, columns: Sequence[Column], rows: int, batch_size: int) -> None:
        """Turn the parts of complete columns into records, note them in the manifest, drop the parts."""
        for column in columns:
            header = _npy_header(self.manifest.record_of(split, column[1]), rows)
            path = record_path(self.folder, split, *column)
            content = (records.tobytes() for _, records in self.written(split, column, blocks(rows, batch_size)))
            write_whole(path, itertools.chain([header], content))
            self.manifest = self.manifest.with_record(key(split, *column), sha256_file(path))
        self.manifest.save(self.folder)
        self.drop_parts(split)

    def drop_parts(self, split: str) -> None:
        """Remove what a split's records were joined from."""
        shutil.rmtree(self._part_folder(split), ignore_errors=True)

    def _part_folder(self, split: str) -> Path:
        return self.folder / "parts" / split

    def _parts(self, split: str, block: Block) -> Iterator[tuple[Path, list[Column]]]:
        """The whole parts of a block and what they hold; a part whose bytes changed counts as absent."""
        for path in sorted(self._part_folder(split).glob(f"{block.start:010d}-{block.stop:010d}-*.safetensors")):
            if path not in self._held:
                self._held[path] = _columns(path)
            if self._held[path]:
                yield path, self._held[path]


def _columns(part: Path) -> list[Column]:
    """What a part holds; nothing when its bytes are not those that were written."""
    try:
        with safe_open(part, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = (file.metadata() or {}).get("sha256") == _digest(tensors)
    except (SafetensorError, OSError):
        return []
    return [(m, int(v)) for m, _, v in (name.rpartition("/") for name in tensors)] if whole else []


def _digest(tensors: Mapping[str, NDArray[np.uint8]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


def _npy_header(record: np.dtype[np.void], rows: int) -> bytes:
    """So that any numpy opens a record, without this package."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False, "shape": (rows,)}
    )
    return header.getvalue()


def leftovers(folder: Path) -> list[Path]:
    """Temporary files of writes that never finished: harmless, removed by the next pass."""
    return [path for name in ("", "records", "parts", "replay") for path in _temporaries(folder, name)]


def _temporaries(folder: Path, name: str) -> list[Path]:
    if name:
        return sorted((folder / name).rglob(f"*{TEMPORARY}"))
    return [path for file in FILES if (path := folder / f"{file}{TEMPORARY}").is_file()]
