"""Finds the files in a tar archive by its headers alone. Nothing is unpacked, so no name can lead out of a folder.

The format is POSIX.1-1988 (ustar) with the long names of pax and of GNU tar.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ensemble_distill.errors import EdistillError

BLOCK = 512
LONGEST = 1 << 16  # bytes of a header that holds a long name
DIGITS = 20  # more than any size has
FILES, FOLDERS, LINKS = b"\x0007", b"5", b"12"
PAX, PAX_FOR_ALL, LONG_NAME = b"x", b"g", b"L"
_HEADER = struct.Struct("100s 24x 12s 12x 8s c 100s 6s 82x 155s 12x")


class Placed(NamedTuple):
    """A file in an archive: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def files_in(path: Path) -> Iterator[Placed]:
    """The files of an archive in their order.

    Raises:
        EdistillError: it is not an archive, is damaged or cut short, or holds links, devices or a file larger than the
            archive.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield from _walked(file, path.stat().st_size)
    except OSError as error:
        raise EdistillError(f"{path} cannot be read: {error.strerror}. Restore it, or make it readable.") from None
    except _OddError as error:
        raise EdistillError(f"{path} {error}") from None


class _OddError(Exception):
    """What is wrong with an archive, and what to do: a message to follow the archive's name."""


def _walked(file: IO[bytes], end: int) -> Iterator[Placed]:
    at = 0
    told: dict[str, str] = {}  # what extended headers say about the next file
    while True:
        file.seek(at)
        block = file.read(BLOCK)
        if block == bytes(BLOCK):
            return
        if len(block) < BLOCK:
            raise _OddError(f"ends at byte {end}, and an archive that is whole says where it ends. Copy it again.")
        name, size, kind = _header(block, at)
        begin = at + BLOCK
        if kind in PAX + LONG_NAME + PAX_FOR_ALL and size > LONGEST:
            raise _OddError(f"has a header of {size} bytes at byte {at}, and names are not that long. Write it again.")
        size = size if kind in PAX + LONG_NAME + PAX_FOR_ALL else int(told.get("size", size))
        if begin + size > end:
            raise _OddError(
                f"says that {name!r} has {size:,} bytes from byte {begin:,} on, and it ends at {end:,}. Copy it again."
            )
        at = begin + -(-size // BLOCK) * BLOCK
        if kind in PAX + LONG_NAME:
            told |= _told(kind, file.read(size), begin)
        elif kind in FILES:
            yield Placed(told.get("path", name), begin, size)
            told = {}
        elif kind in FOLDERS:
            told = {}
        elif kind not in PAX_FOR_ALL:
            what = "a link" if kind in LINKS else f"of type {kind!r}, no file"
            raise _OddError(f"holds {told.get('path', name)!r}, which is {what}. Write it with the files themselves.")


def _header(block: bytes, at: int) -> tuple[str, int, bytes]:
    """The name, size and type in a header. Raises _OddError if its checksum is wrong or its size is no number."""
    name, size, checksum, kind, _, magic, prefix = _HEADER.unpack(block)
    try:
        if sum(block) - sum(checksum) + 8 * 32 != _number(checksum):
            raise ValueError("its checksum is another")
        count = _number(size)
    except ValueError as error:
        raise _OddError(f"is not a tar archive, or damaged at byte {at}: {error}. Write it again.") from None
    told = _text(name)
    if magic[:5] == b"ustar" and magic[5:] == b"\0" and (above := _text(prefix)):  # GNU tar stores times there
        told = f"{above}/{told}"
    return told, count, kind


def _number(field: bytes) -> int:
    """A number in octal digits, or in base 256, as GNU tar writes large ones."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if digits and not digits.isdigit():
        raise ValueError(f"{field!r} is not a number")
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _told(kind: bytes, content: bytes, at: int) -> dict[str, str]:
    """What an extended header of pax or GNU tar says about the next file: its "path", and for pax its "size"."""
    if kind in LONG_NAME:
        return {"path": _text(content)}
    found = {}
    while content and content[0]:
        length, _, rest = content.partition(b" ")
        digits = length.isdigit() and len(length) < DIGITS
        if not digits or not 0 < int(length) <= len(content) or b"=" not in rest:
            raise _OddError(f"is damaged at byte {at}: a header of pax is none. Write it again.")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "replace")
        content = content[int(length) :]
    size = found.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) < DIGITS):
        raise _OddError(f"is damaged at byte {at}: a file's size is {size[:DIGITS]!r}. Write it again.")
    return found
