"""Reads arrays that NumPy stored. What a header claims is compared with the file before memory is allocated."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ensemble_distill.data.mapped import Mapped, Place
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import memory, refuse_endless

HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,  # (3, 0) only serves field names outside Latin-1
}
MAPPED = 2**26  # bytes from which on an array is mapped, not read whole
UNPACKED = "Write inputs with numpy.savez, not compressed and in the order of C, to have them read by row; or give"
LOCAL = struct.Struct("<4s 22x H H")  # an entry's local header: its signature, and the lengths of name and extra field


class Archive:
    """The arrays of an `.npz` by name, each read at access.

    Raises:
        EdistillError: the file cannot be read as an `.npz`, or holds a name twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            refuse_endless(path)
            with path.open("rb") as file:
                if file.read(6) == np.lib.format.MAGIC_PREFIX:
                    raise ValueError("it is a single array")
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except Exception as error:  # a broken zip fails in many ways
            raise self._unreadable(error) from error
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        if len(self._entries) < len(entries):
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            twice = next(name for name in names if names.count(name) > 1)
            raise EdistillError(f"{path} holds {twice!r} twice. Write it again with numpy.savez.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def is_array(self, name: str) -> bool:
        """Whether an entry is an array, by its extension, and not another file in the archive."""
        return self._entries[name].filename.endswith(".npy")

    def shape(self, name: str) -> tuple[int, ...]:
        """An array's shape, as its header says; nothing else is read."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._entries[name]) as file:
                return _header(file)[0]
        except Exception as error:
            raise self._unreadable(error) from error

    def mapped(self, name: str) -> Mapped | None:
        """A large, uncompressed array of numbers in C order, mapped so that its rows are read at access.

        None for any other array, which `read` reads whole.

        Raises:
            EdistillError: the array is not whole, or does not have the archive's checksum.
        """
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < MAPPED:
            return None
        named = f"{self.path}: {name}"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as file:
                shape, columns_first, dtype = _header(file)
                header = file.tell()
            start = _content(self.path, entry)
            if dtype.kind not in "fiu" or not shape or (columns_first and len(shape) > 1):
                return None  # in Fortran order, each row is spread over the whole file
            _refuse_lying(shape, dtype, entry.file_size - header)
            found = Mapped(Place(self.path, named, start + header, dtype, shape))
            if found.checksum(start, start + entry.file_size) != entry.CRC:
                raise ValueError(f"Bad CRC-32 for file {entry.filename!r}")
        except EdistillError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error
        return found

    def read(self, name: str) -> Array:
        """An array, read whole.

        Raises:
            EdistillError: the array is pickled, does not fit into memory, or is not whole.
        """
        entry = self._entries[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                return _read(lambda: archive.open(entry), entry.file_size, f"{self.path}: {name}", UNPACKED)
        except EdistillError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> EdistillError:
        return EdistillError(f"{self.path} cannot be read as .npz: {error}. Write it with numpy.savez.")


def read_npy(path: Path, named: str) -> Array:
    """The array in an `.npy`.

    Args:
        named: the setting or the role of the file, for messages.

    Raises:
        EdistillError: the file is not an `.npy`, is an archive of several arrays, pickled, larger than memory, or not
            whole.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("it is a zip archive, as of several arrays")
        return _read(lambda: path.open("rb"), path.stat().st_size, f"{named}: {path}")
    except EdistillError:
        raise
    except Exception as error:  # a header may hold any text, which fails in many ways
        raise EdistillError(f"{named}: {path} is not an .npy: {error}. Write it with numpy.save.") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether the order is Fortran's, and the dtype."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format is of version {version}")
    return HEADERS[version](file)


def _content(path: Path, entry: zipfile.ZipInfo) -> int:
    """The offset in bytes of a stored entry's content, which follows its local header (APPNOTE.TXT 4.3.7).

    Raises:
        ValueError: there is no such header, the entry is compressed, or its content leads out of the file.
    """
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(LOCAL.size)
        end = path.stat().st_size
    mark, name, extra = LOCAL.unpack(header)
    start: int = entry.header_offset + LOCAL.size + name + extra
    if mark != b"PK\x03\x04" or entry.compress_size != entry.file_size or start + entry.file_size > end:
        raise ValueError(f"{entry.filename!r} of {entry.file_size:,} bytes is said to begin at {start:,} of {end:,}")
    return start


def _refuse_lying(shape: tuple[int, ...], dtype: np.dtype[Any], there: int) -> None:
    """Raise ValueError if a header claims another number of bytes than there are."""
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != there:
        raise ValueError(f"its header claims {claimed:,} bytes, an array {shape} of {dtype}, and {there:,} are there")


def _read(opened: Callable[[], IO[bytes]], size: int, named: str, instead: str = "Give") -> Array:
    """The array in a file of `size` bytes.

    The file is opened twice: for the header, and after that was checked, for the array.

    Args:
        instead: for an array that is too large, the beginning of the advice in the message.
    """
    with opened() as file:
        shape, _, dtype = _header(file)
        there = size - file.tell()
    if dtype.hasobject:
        raise EdistillError(
            f"{named} is an array of Python objects, which only unpickling could read. Store numbers, or names as "
            "numpy.array(names, dtype=str)."
        )
    _refuse_lying(shape, dtype, there)
    if there > (most := memory()):
        raise EdistillError(
            f"{named} is {shape} of {dtype}: {there / 2**30:,.1f} GiB, and this machine's memory has "
            f"{most / 2**30:,.1f}. {instead} a dataset that reads a row at a time, by file.py:factory."
        )
    with opened() as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array
