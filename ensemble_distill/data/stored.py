"""Reading arrays that NumPy stored: what a header claims is compared with what is there before memory is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import memory

HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,  # (3, 0) is only of fields with names that are no Latin-1
}


class Archive:
    """The arrays of an `.npz` by name, each read when it is asked for.

    Raises:
        EdistillError: it cannot be read, or holds a name twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
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
        """Whether it is called as arrays are, and no other file in the archive."""
        return self._entries[name].filename.endswith(".npy")

    def shape(self, name: str) -> tuple[int, ...]:
        """What the header says; nothing else is read."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self._entries[name]) as file:
                return _header(file)[0]
        except Exception as error:
            raise self._unreadable(error) from error

    def read(self, name: str) -> Array:
        """Raises EdistillError: the array is pickled, does not fit into memory, or is not all there."""
        entry = self._entries[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                return _read(lambda: archive.open(entry), entry.file_size, f"{self.path}: {name}")
        except EdistillError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> EdistillError:
        return EdistillError(f"{self.path} cannot be read as .npz: {error}. Write it with numpy.savez.")


def read_npy(path: Path, named: str) -> Array:
    """The array in an `.npy`.

    Args:
        named: which setting it is of, for messages.

    Raises:
        EdistillError: it is no `.npy`, an archive of several, pickled, larger than memory, or not all there.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise ValueError("it is a zip archive, as of several arrays")
        return _read(lambda: path.open("rb"), path.stat().st_size, f"{named}: {path}")
    except EdistillError:
        raise
    except Exception as error:  # a header is anyone's text
        raise EdistillError(f"{named}: {path} is no .npy: {error}. Write it with numpy.save.") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format is of version {version}")
    shape, _, dtype = HEADERS[version](file)
    return shape, dtype


def _read(opened: Callable[[], IO[bytes]], size: int, named: str) -> Array:
    """The array of a file of `size` bytes, which is opened twice: for the header, and once that is known to hold."""
    with opened() as file:
        shape, dtype = _header(file)
        there = size - file.tell()
    if dtype.hasobject:
        raise EdistillError(
            f"{named} is an array of Python objects, which only unpickling could read. Store numbers, or names as "
            "numpy.array(names, dtype=str)."
        )
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != there:
        raise ValueError(f"its header claims {claimed:,} bytes, an array {shape} of {dtype}, and {there:,} are there")
    if claimed > (most := memory()):
        raise EdistillError(
            f"{named} is {shape} of {dtype}: {claimed / 2**30:,.1f} GiB, and this machine's memory has "
            f"{most / 2**30:,.1f}. Give a dataset that reads a row at a time, by file.py:factory."
        )
    with opened() as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array
