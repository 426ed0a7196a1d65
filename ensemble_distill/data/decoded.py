"""Pictures that were decoded once and are read from a cache, equal to the byte to what their source decodes."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.decoded_blocks import (
    RECORD,
    damaged,
    load_record,
    opened,
    path_of,
    refuse_other_pictures,
)
from ensemble_distill.data.mapped import Mapped, Place
from ensemble_distill.data.source import Array, Item, Source
from ensemble_distill.data.stamp import Stamp
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.wrapping import Wrapping, innermost
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import refuse_endless, sha256_file

VERIFIED = 2**30  # bytes of a split's blocks up to which opening compares their checksums, as for records
OPEN_MAPS = 256  # maps that are open at once; each holds a file descriptor


class _File(NamedTuple):
    """The file of a block as it was found.

    Attributes:
        place: where the pixels lie.
        stamp: the file's stamp, taken before its contents were compared.
    """

    place: Place
    stamp: Stamp


class Pictures:
    """The stored pictures of a split, memory-mapped; a copy in another process maps them itself.

    Args:
        files: the blocks' files in order.
        starts: the first row of each block.
        shapes: (N, 3), height, width and channels of each picture.
    """

    def __init__(self, files: list[_File], starts: list[int], shapes: Array) -> None:
        self._files, self._starts, self._shapes = files, starts, shapes
        sizes = shapes.astype(np.int64).prod(axis=1)
        ends = np.cumsum(sizes)
        first = (ends - sizes)[starts]  # the offset of each block among all pixels
        self._begins = ends - sizes - np.repeat(first, np.diff([*starts, len(shapes)]))
        self._maps: dict[int, Mapped] = {}

    def __len__(self) -> int:
        return len(self._shapes)

    def read(self, row: int) -> Array:
        """A copy of a picture, uint8 (H, W, C). Raises EdistillError if the file has changed since it was opened."""
        shape = self._shapes[row].tolist()
        begin = int(self._begins[row])
        stop = begin + shape[0] * shape[1] * shape[2]
        return self._map(bisect_right(self._starts, row) - 1).read(begin, stop).reshape(shape)

    def _map(self, at: int) -> Mapped:
        found = self._maps.get(at)
        if found is None:
            if len(self._maps) >= OPEN_MAPS:
                self._maps.clear()
            found = self._maps[at] = Mapped(*self._files[at])
        return found

    def __reduce__(self) -> tuple[type[Pictures], tuple[Any, ...]]:
        return Pictures, (self._files, self._starts, self._shapes)


def open_pictures(cache: Path, split: str, rows: int, digest: str) -> Pictures:
    """The stored pictures of a split.

    Blocks of up to 1 GiB in all are compared with their checksums. Of more, only sizes are compared; `edistill verify`
    compares every checksum.

    Args:
        rows, digest: the present ones of the split's data.

    Raises:
        EdistillError: nothing is stored, or what is stored is of other data, damaged, or not whole.
    """
    refuse_other_pictures(cache, split, rows, digest)
    record = load_record(cache, split)
    if record is None:
        raise EdistillError(
            f"{cache} holds no decoded pictures of {split}. Run edistill cache-logits with cache.decoded."
        )
    small = sum(block.bytes for block in record.blocks) <= VERIFIED
    files, shapes = [], []
    for block in record.blocks:
        path = path_of(cache, split, block)
        try:
            refuse_endless(path)
            stamp = Stamp.of(path)
            if (size := path.stat().st_size) != block.bytes:
                raise ValueError(f"it has {size:,} bytes, and {RECORD} says {block.bytes:,}")
            if small and (found := sha256_file(path)) != block.sha256:
                raise ValueError(f"its sha256 is {found[:12]}…, and {RECORD} says {block.sha256[:12]}…")
            header = opened(path, block)
        except OSError as error:
            raise damaged(path, error.strerror or str(error)) from None
        except ValueError as error:
            raise damaged(path, str(error)) from None
        files.append(_File(Place(path, str(path), header.start, np.dtype(np.uint8), header.pixels), stamp))
        shapes.append(header.shapes)
    return Pictures(files, [block.start for block in record.blocks], np.concatenate(shapes))


class Decoded(Subset):
    """All rows of a source, with their pictures read from the cache.

    Args:
        whole: the source, from which everything else comes.
        pictures: the stored pictures of its rows, in order.
    """

    def __init__(self, whole: Source, pictures: Pictures) -> None:
        super().__init__(whole, np.arange(len(whole)))
        self.pictures = pictures
        self._labels = whole.labels  # here, not in each loader process: a factory may read every row for them

    def item(self, row: int) -> Item:
        return Item(self.pictures.read(row), None if self._labels is None else self._labels[row], "pixels")

    @property
    def labels(self) -> Array | None:
        return self._labels

    @property
    def digest(self) -> str:
        return self.inner.digest

    @property
    def digest_scope(self) -> str:
        return self.inner.digest_scope


def decodes(source: Source) -> bool:
    """Whether a source decodes pictures at access; those in arrays are decoded already."""
    return source.kind == "pixels" and not isinstance(innermost(source), Arrays)


def is_decoded(source: Source) -> bool:
    """Whether a source's pictures are read from the cache."""
    while isinstance(source, Wrapping) and not isinstance(source, Decoded):
        source = source.inner
    return isinstance(source, Decoded)
