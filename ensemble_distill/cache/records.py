"""The records of one split, and their files."""

from __future__ import annotations

import hashlib
import io
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.runtime import open_files
from ensemble_distill.runtime.files import read_whole, refuse_endless, sha256_file

IN_MEMORY = 1 << 27  # bytes of a split's records up to which they are held in memory; larger ones are mapped
VERIFIED = 1 << 30  # bytes of a split's records up to which their checksums are compared on opening
HEADER = 1 << 16  # maximum bytes of a record file before its records
AT_ONCE = 8192  # rows that `answered` reads at a time


class Records:
    """The members' answers for one split, in some views.

    Logits, W = K, or means and log-variances of D targets, W = 2D; with positions (L, K). NaN in rows that a member
    does not answer.

    Attributes:
        partial: whether there are such rows.
        sampled: whether the records hold a few drawn classes only; see `SampledRecords`.
    """

    sampled: ClassVar[bool] = False

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        views: int,
        keys: Sequence[Sequence[RecordKey | SampleKey]] | None = None,
    ) -> None:
        """Open the records of all members or, if given, of `keys`: a list per record name, with a key per view."""
        self.split = manifest.splits[split]
        self.members = manifest.names if keys is None else tuple(views[0].named for views in keys)
        self.views = views
        if keys is None:
            keys = [[RecordKey(split, name, view) for view in range(views)] for name in manifest.names]
        self._format = manifest.format_of(keys[0][0])
        self._record = self._format.record
        self.partial = any(key in manifest.unanswered for row in keys for key in row)
        self._paths = [[key.path(folder) for key in row] for row in keys]
        self._sums = [[manifest.records[key] for key in row] for row in keys]
        size = self.split.rows * self._record.itemsize * views * len(self.members)
        self._held: NDArray[np.void] | None = None  # (views, M, rows)
        self._starts: dict[tuple[int, int], int] = {}  # of the records in each file, by member and view
        # the first files stay mapped, the others are mapped for each read. To keep those used last instead would keep
        # none: a batch reads all files in turn
        self._maps: dict[tuple[int, int], NDArray[np.void]] = {}
        self._most_maps = open_files.most_maps()
        # find a damaged record here rather than in the middle of a training. For large ones only the size is checked,
        # since hashing takes minutes: `edistill verify` does that
        if size <= IN_MEMORY:
            self._held = np.empty((views, len(self.members), self.split.rows), self._record)
        for m in range(len(self.members)):
            for v in range(views):
                if self._held is not None:
                    self._held[v, m] = self._read(m, v)
                    continue
                self._open(m, v)
                if size <= VERIFIED:
                    refuse_other_sum(self._paths[m][v], sha256_file(self._paths[m][v]), self._sums[m][v])

    def __len__(self) -> int:
        return self.split.rows

    def answered(self) -> NDArray[np.bool_]:
        """Whether each member answers each row in every view, (N, M)."""
        there = np.ones((len(self), len(self.members)), bool)
        if self.partial:
            for view in range(self.views):
                for at in range(0, len(self), AT_ONCE):
                    said = self.read(np.arange(at, min(at + AT_ONCE, len(self))), view)
                    there[at : at + AT_ONCE] &= ~np.isnan(said.reshape(*said.shape[:2], -1)).all(-1)
        return there

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a member's answer for a row: (W,), or (L, K)."""
        return self._format.shape

    def read(self, rows: Sequence[int] | NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[np.float32]:
        """Outputs (B, M, *shape) of B rows, each in its own view, or all in one."""
        rows = np.asarray(rows, dtype=np.int64)
        views = np.broadcast_to(np.asarray(views, dtype=np.int64), rows.shape)
        # in memory, one gather for all members
        found = self._gathered(rows, views) if self._held is None else self._held[views, :, rows]
        return self._format.decode(found.reshape(-1)).reshape(*found.shape, *self._format.shape)

    def _gathered(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.void]:
        """The records of B rows, each in its own view, from their files: (B, M)."""
        found = np.empty((len(rows), len(self.members)), self._record)
        for view in np.unique(views):
            here = np.flatnonzero(views == view)
            wanted = rows[here]
            for m in range(len(self.members)):
                found[here, m] = self._open(m, int(view))[wanted]
        return found

    def _open(self, member: int, view: int) -> NDArray[np.void]:
        """A record file (rows,), memory-mapped; its header is checked the first time."""
        key, path = (member, view), self._paths[member][view]
        if (found := self._maps.get(key)) is not None:
            return found
        try:
            if key not in self._starts:
                self._starts[key] = _checked(path, self._record, self.split.rows)
            found = _mapped(path, self._record, self.split.rows, self._starts[key])
        except (OSError, ValueError) as error:
            raise damaged(path, _told(error)) from None
        if len(self._maps) < self._most_maps:
            self._maps[key] = found
        return found

    def _read(self, member: int, view: int) -> NDArray[np.void]:
        path = self._paths[member][view]
        try:
            content = read_whole(path, HEADER + self.split.rows * self._record.itemsize)
            refuse_other_sum(path, hashlib.sha256(content).hexdigest(), self._sums[member][view])
            start = _start(io.BytesIO(content), len(content), self._record, self.split.rows)
        except (OSError, ValueError) as error:
            raise damaged(path, _told(error)) from None
        return np.frombuffer(content, self._record, offset=start)


def mapped(path: Path, record: np.dtype[np.void], rows: int) -> NDArray[np.void]:
    """A record file (rows,), memory-mapped. Raises EdistillError if the file does not hold that many such records."""
    try:
        return _mapped(path, record, rows, _checked(path, record, rows))
    except (OSError, ValueError) as error:
        raise damaged(path, _told(error)) from None


def problem_of(path: Path, record: np.dtype[np.void], rows: int, sha256: str) -> str | None:
    """What is wrong with a record file, as a sentence; None if it is intact."""
    try:
        _checked(path, record, rows)  # first, since it reads only the header
        found = sha256_file(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({_told(error)})"
    return None if found == sha256 else f"{path} has sha256 {found[:12]}…, and the manifest says {sha256[:12]}…"


def _checked(path: Path, record: np.dtype[np.void], rows: int) -> int:
    """Where the records start in a file. Raises ValueError if it does not hold `rows` of them."""
    refuse_endless(path)
    with path.open("rb") as file:
        return _start(file, path.stat().st_size, record, rows)


def _mapped(path: Path, record: np.dtype[np.void], rows: int, start: int) -> NDArray[np.void]:
    """The records (rows,) from `start` to the end of a file, memory-mapped; np.memmap takes ten times as long."""
    with open(path, "rb") as file:  # noqa: PTH123
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(content) != start + rows * record.itemsize:
        raise ValueError(f"it has {len(content) - start} bytes of records, not {rows * record.itemsize}")
    return np.frombuffer(content, record, rows, start)


def _start(file: BinaryIO, size: int, record: np.dtype[np.void], rows: int) -> int:
    """Where the records start in a file of `size` bytes. Raises ValueError if it holds anything else."""
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except OSError:
        raise
    except Exception as error:  # NumPy evaluates the header, which can be anything
        raise ValueError(f"it has no header of an array: {error}") from None
    start, wanted = file.tell(), rows * record.itemsize
    if shape != (rows,) or dtype != record:
        raise ValueError(f"it has {shape} records of {dtype}, not {rows} of {record}")
    if size - start != wanted:
        raise ValueError(f"it has {size - start} bytes of records, not {wanted}")
    return start


def _told(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def refuse_other_sum(path: Path, found: str, wanted: str) -> None:
    """Raise EdistillError if the checksum of a record file is not the one in the manifest."""
    if found != wanted:
        raise damaged(path, f"its sha256 is {found[:12]}…, and the manifest says {wanted[:12]}…")


def damaged(path: Path, reason: str) -> EdistillError:
    """The error for a record that is not what was written."""
    return CacheError(
        f"{path} is damaged: {reason}. Delete that file and run edistill cache-logits to compute it again."
    )
