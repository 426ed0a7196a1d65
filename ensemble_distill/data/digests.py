"""Digests of a split's contents: cheap, explicit about what they cover, the same wherever the data lies.

Modification times and absolute paths are left out, because data moves between machines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill.data.mapped import MappedInputs
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import read_whole

WHOLE = 2**30  # bytes of contents that are hashed without sampling
SAMPLE = 1000  # rows that are hashed beyond those


def arrays_digest(x: Array | MappedInputs, y: Array | None, classes: Sequence[str] | None) -> str:
    """sha256 of dtype, shape and bytes of both arrays and of the class names."""
    hasher = _Hasher()
    hasher.blocks("x", x.dtype, x.shape, [x] if isinstance(x, np.ndarray) else x.blocks())
    hasher.labels(y, classes)
    return hasher.hexdigest()


def folder_digest(
    root: Path, names: Sequence[str], labels: Array | None, classes: Sequence[str] | None
) -> tuple[str, str]:
    """The sha256 of every file's name, size and label and of contents, and a description of what it covers.

    Contents are hashed of the first rows, up to 1 GiB together, and of at most 1,000 evenly spaced rows of the rest.

    Raises:
        EdistillError: a file cannot be read.
    """
    with _naming_files():
        return contents_digest(
            ((name, (root / name).stat().st_size) for name in names),
            lambda row: _content(root / names[row]),
            labels,
            classes,
        )


def contents_digest(
    files: Iterable[tuple[str, int]],
    content: Callable[[int], bytes],
    labels: Array | None,
    classes: Sequence[str] | None,
) -> tuple[str, str]:
    """`folder_digest` for rows that need not be files.

    Args:
        files: each row's name and its size in bytes.
        content: returns the bytes of a row.
    """
    hasher = _Hasher()
    hasher.labels(labels, classes)
    count = whole = total = 0
    for name, size in files:
        hasher.text(name, size)
        count, total = count + 1, total + size
        if total <= WHOLE:
            whole = count
    sampled = _spaced(whole, count)
    for row in [*range(whole), *sampled]:
        hasher.content(content(row))
    part = f"the first {whole} rows and of {len(sampled)} sampled ones"
    contents = "all rows" if whole == count else part
    return hasher.hexdigest(), f"name, size and label of every row, contents of {contents}"


def examples_digest(
    length: int, labels: Array | None, classes: Sequence[str] | None, read: Callable[[int], Array]
) -> tuple[str, str]:
    """The sha256 of the labels and of what `read(row)` returns, and a description of what it covers.

    All rows are read if the first one's size times their number is at most 1 GiB, otherwise at most 1,000 evenly
    spaced ones.
    """
    hasher = _Hasher()
    hasher.text("length", length)
    hasher.labels(labels, classes)
    small = read(0).nbytes * length <= WHOLE
    rows = range(length) if small else _spaced(0, length)
    for row in rows:
        hasher.array(str(row), read(row))
    contents = "all rows" if len(rows) == length else f"{len(rows)} sampled rows"
    return hasher.hexdigest(), f"label of every row, contents of {contents}"


def tokens_digest(stream: Array, count: int, window: int, context: int, classes: Sequence[str]) -> str:
    """sha256 of a stream's tokens, of the vocabulary, and of how rows are cut from the stream."""
    hasher = _Hasher()
    hasher.text("tokens", count, window, context)
    hasher.array("stream", stream)
    hasher.labels(None, classes)
    return hasher.hexdigest()


def texts_digest(whole: Array, ends: Array, labels: Array | None, classes: Sequence[str] | None) -> str:
    """sha256 of texts in UTF-8, of where each ends, of the labels and of the class names."""
    hasher = _Hasher()
    hasher.text("texts", len(ends) - 1)
    hasher.array("ends", ends.astype(np.int64))
    hasher.array("whole", whole)
    hasher.labels(labels, classes)
    return hasher.hexdigest()


def several_digest(parts: Mapping[str, str], labels: Array | None, classes: Sequence[str] | None) -> str:
    """sha256 of the names and digests of a row's several arrays, of the labels and of the class names."""
    hasher = _Hasher()
    hasher.text("several", len(parts))
    for name, digest in parts.items():
        hasher.text(name, digest)
    hasher.labels(labels, classes)
    return hasher.hexdigest()


def subset_digest(base: str, rows: Array) -> str:
    """sha256 of the whole source's digest and of the rows taken, in their order."""
    hasher = _Hasher()
    hasher.text("subset", base)
    hasher.array("rows", rows)
    return hasher.hexdigest()


def _content(path: Path) -> bytes:
    try:
        return read_whole(path)
    except ValueError as error:
        raise EdistillError(f"{path} is not an image: {error}. Replace the file, or remove it.") from None


@contextmanager
def _naming_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EdistillError(f"{error.filename} cannot be read: {error.strerror}. Restore it.") from error


def _spaced(start: int, stop: int) -> Sequence[int]:
    """At most SAMPLE evenly spaced numbers of range(start, stop), both ends included."""
    if stop - start <= SAMPLE:
        return range(start, stop)
    return [start + index * (stop - start - 1) // (SAMPLE - 1) for index in range(SAMPLE)]


class _Hasher:
    """sha256 of parts, each with its length or shape, so that moving bytes from one part to the next changes it."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def content(self, content: bytes) -> None:
        self._sha.update(f"{len(content)}:".encode())
        self._sha.update(content)

    def text(self, *parts: str | int) -> None:
        for part in parts:
            self.content(str(part).encode("utf-8", "surrogateescape"))

    def array(self, name: str, array: Array) -> None:
        self.blocks(name, array.dtype, array.shape, [array])

    def blocks(self, name: str, dtype: np.dtype[Any], shape: Sequence[int], blocks: Iterable[Array]) -> None:
        little = dtype.newbyteorder("<")
        self.text(name, little.str, str(tuple(shape)))
        for block in blocks:
            self._sha.update(np.ascontiguousarray(block, dtype=little).data)

    def labels(self, labels: Array | None, classes: Sequence[str] | None) -> None:
        if labels is None:
            self.text("no labels")
        else:
            self.array("labels", labels)
        self.text("classes", len(classes or ()), *(classes or ()))

    def hexdigest(self) -> str:
        return self._sha.hexdigest()
