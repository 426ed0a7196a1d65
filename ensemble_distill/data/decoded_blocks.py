"""Decoded pictures on disk: blocks of rows, each a file with a checksum of its own, and a record of them all.

They lie in a cache, under `decoded/SPLIT/`. A block holds its pictures one after the other as they were decoded, of any
sizes, and their shapes. A block is whole or absent, and the record is written once all blocks are there: whenever the
process dies, a second pass decodes only what is missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import safe_open
from safetensors.numpy import save

from ensemble_distill import __version__
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError, first_line, parted
from ensemble_distill.runtime.files import refuse_endless, remove_file, sha256_file, write_whole
from ensemble_distill.runtime.records import parsed
from ensemble_distill.runtime.seals import WRITTEN_BY, read_sealed_json, write_sealed_json

FOLDER = "decoded"  # in a cache
RECORD = "pictures.json"
FORMAT = 1
BLOCK_BYTES = 2**26  # about, of the pictures in a block: what is decoded again after a kill
MOST_ROWS = 2**16  # in a block
SIDE = 2**20  # largest height, width or number of channels, so that no product overflows

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Block:
    """The block of rows start to stop − 1.

    Attributes:
        bytes: the size of its file.
        sha256: that of its file.
    """

    start: Count
    stop: Count
    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class Record:
    """What is stored of a split.

    Attributes:
        format: the version of the format of blocks and record.
        rows: the number of rows in the split.
        digest, digest_scope: of the data that was decoded; see `Source`.
        pixels: bytes of all pictures together.
        blocks: all blocks, in the order of their rows.
    """

    format: int
    rows: Count
    digest: str
    digest_scope: str
    pixels: Count
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        """Raises ValueError unless the blocks hold the rows in order and without gaps."""
        starts = [block.start for block in self.blocks]
        stops = [block.stop for block in self.blocks]
        if [0, *stops] != [*starts, self.rows] or any(one.start >= one.stop for one in self.blocks):
            raise ValueError(f"its blocks are of rows {list(zip(starts, stops, strict=True))[:3]} of {self.rows}")


def cut(rows: int, largest: int) -> list[range]:
    """The rows of a split, cut into blocks of at most about `BLOCK_BYTES`.

    Args:
        rows: the number of rows.
        largest: bytes of the largest picture among those that were sampled.
    """
    step = min(MOST_ROWS, max(1, BLOCK_BYTES // max(1, largest)))
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


class Blocks:
    """The blocks of a split.

    Args:
        cache: the cache's folder.
        split: the split's name.
        digest: the digest of the data that is decoded; blocks of other data count as absent.
    """

    def __init__(self, cache: Path, split: str, digest: str) -> None:
        self.cache, self.digest = cache, digest
        self.folder = folder_of(cache, split)

    def path(self, rows: range) -> Path:
        return self.folder / _name(rows.start, rows.stop)

    def is_whole(self, rows: range) -> bool:
        """Whether a block is there, with the pictures that were put and of this data."""
        try:
            refuse_endless(self.path(rows))
            with safe_open(self.path(rows), framework="numpy") as file:
                said = (file.metadata() or {}).get("sha256")
                shapes, pixels = file.get_tensor("shapes"), file.get_tensor("pixels")
        except Exception:  # safetensors' errors share no base class
            return False
        return len(shapes) == len(rows) and said == _digest(shapes, pixels, self.digest)

    def put(self, rows: range, shapes: Array, pixels: Array) -> None:
        """Store the pictures of a block; on return they survive a crash.

        Args:
            rows: the block's rows.
            shapes: (rows, 3) int32, height, width and channels of each.
            pixels: (n,) uint8, one picture after the other.
        """
        whole = {"shapes": shapes, "pixels": pixels}
        content = save(whole, metadata={"sha256": _digest(shapes, pixels, self.digest)})
        write_whole(self.path(rows), content, within=self.cache)

    def note(self, cut: Sequence[range], digest_scope: str) -> None:
        """Write the record of the blocks `cut`, which must all be there, and remove the files of other blocks."""
        paths = [self.path(rows) for rows in cut]
        blocks = tuple(
            Block(rows.start, rows.stop, path.stat().st_size, sha256_file(path))
            for rows, path in zip(cut, paths, strict=True)
        )
        pixels = sum(math.prod(_header(path).pixels) for path in paths)
        record = Record(FORMAT, cut[-1].stop, self.digest, digest_scope, pixels, blocks)
        told = {**asdict(record), "blocks": [asdict(block) for block in blocks], WRITTEN_BY: __version__}
        write_sealed_json(self.folder / RECORD, told, within=self.cache)
        for path in set(self.folder.glob("*.safetensors")) - set(paths):
            remove_file(path, within=self.cache)


@dataclass(frozen=True)
class Header:
    """Where the pixels of a block lie in its file.

    Attributes:
        start: their offset in bytes.
        pixels: their shape, (n,).
        shapes: (rows, 3), height, width and channels of each picture.
    """

    start: int
    pixels: tuple[int, ...]
    shapes: Array


def _header(path: Path) -> Header:
    """The header of a block's file. Raises ValueError if the file is not a block."""
    try:
        refuse_endless(path)
        with safe_open(path, framework="numpy") as file:
            shapes, pixels = file.get_tensor("shapes"), file.get_slice("pixels")
            length, dtype = tuple(pixels.get_shape()), pixels.get_dtype()
    except Exception as error:
        raise ValueError(first_line(error)) from None
    if dtype != "U8" or len(length) != 1 or shapes.dtype != np.int32 or shapes.ndim != 2 or shapes.shape[1] != 3:
        raise ValueError(f"it has pixels {dtype} {length} and shapes {shapes.dtype} {shapes.shape}")
    # safetensors has checked that tensors fill the file, and writes the widest dtype first, so pixels come last
    return Header(path.stat().st_size - length[0], length, shapes)


def opened(path: Path, block: Block) -> Header:
    """The header of a block's file.

    Raises:
        ValueError: the file is not a block, is not of the block's rows, or its pictures do not fill it.
    """
    found = _header(path)
    shapes = found.shapes.astype(np.int64)
    if len(shapes) != block.stop - block.start or (shapes < 1).any() or (shapes > SIDE).any():
        raise ValueError(f"it has {len(shapes)} pictures, and {block.stop - block.start} are noted")
    if (total := int(shapes.prod(axis=1).sum())) != found.pixels[0]:
        raise ValueError(f"its {len(shapes)} pictures fill {total:,} bytes, and it has {found.pixels[0]:,}")
    return found


def folder_of(cache: Path, split: str) -> Path:
    return cache / FOLDER / split


def path_of(cache: Path, split: str, block: Block) -> Path:
    return folder_of(cache, split) / _name(block.start, block.stop)


def splits_in(cache: Path) -> list[str]:
    """The splits whose pictures are stored whole."""
    found = (cache / FOLDER).rglob(RECORD)
    return sorted(path.parent.relative_to(cache / FOLDER).as_posix() for path in found)


def is_stored(cache: Path, split: str) -> bool:
    """Whether a split has a record, and every file that it names.

    Raises:
        EdistillError: the record is damaged.
    """
    record = load_record(cache, split)
    return record is not None and all(path_of(cache, split, block).is_file() for block in record.blocks)


def load_record(cache: Path, split: str) -> Record | None:
    """The record of a split; None if nothing is stored, or the pass did not finish.

    Raises:
        EdistillError: the record is damaged, or has another format.
    """
    path = folder_of(cache, split) / RECORD
    try:
        told, sealed = read_sealed_json(path)
        if isinstance(told, dict) and told.get("format", FORMAT) != FORMAT:
            raise EdistillError(
                f"{path} has format {told['format']}, and this edistill reads format {FORMAT}. {_anew(path.parent)}"
            )
        if not sealed:
            raise ValueError("it has no sha256")
        return parsed(Record, told)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise EdistillError(f"{path} is damaged: {reason}. {_anew(path.parent)}")


def refuse_other_pictures(cache: Path, split: str, rows: int, digest: str) -> None:
    """Raise EdistillError if the stored pictures of a split are of other data than its present data."""
    record = load_record(cache, split)
    if record is not None and (record.digest, record.rows) != (digest, rows):
        raise EdistillError(
            f"{folder_of(cache, split)} holds pictures of data {record.digest[:12]}… ({record.rows} rows), but "
            f"data.{split.replace('/', '.')} is {digest[:12]}… ({rows} rows). Put that data back, or run "
            "edistill cache-logits --overwrite."
        )


def damaged(path: Path, reason: str) -> EdistillError:
    """The error for a block that is not as it was written."""
    return EdistillError(
        f"{path} is damaged: {reason}. Delete that file and run edistill cache-logits to decode its rows again."
    )


def _anew(folder: Path) -> str:
    return f"Delete {folder} and run edistill cache-logits to decode again."


def problems(cache: Path) -> list[str]:
    """A sentence for each file of decoded pictures that is missing or not as it was written."""
    found = []
    for split in splits_in(cache):
        try:
            record = load_record(cache, split)
        except EdistillError as error:
            found.append(parted(str(error))[0].removesuffix("."))
            continue
        for block in () if record is None else record.blocks:
            path = path_of(cache, split, block)
            try:
                if (told := sha256_file(path)) != block.sha256:
                    found.append(f"{path} has sha256 {told[:12]}…, and {RECORD} says {block.sha256[:12]}…")
            except FileNotFoundError:
                found.append(f"{path} is missing")
            except (OSError, ValueError) as error:
                found.append(f"{path} cannot be read ({first_line(error)})")
    return found


def about(cache: Path) -> dict[str, Any]:
    """The rows, bytes and data digest of each split whose pictures are stored."""
    records = {split: load_record(cache, split) for split in splits_in(cache)}
    return {
        split: {"rows": one.rows, "bytes": sum(block.bytes for block in one.blocks), "digest": one.digest}
        for split, one in records.items()
        if one is not None
    }


def _name(start: int, stop: int) -> str:
    return f"{start:010d}-{stop:010d}.safetensors"


def _digest(shapes: Array, pixels: Array, data: str) -> str:
    digest = hashlib.sha256(f"{data}/{shapes.dtype}/{shapes.shape}/".encode())
    digest.update(np.ascontiguousarray(shapes).data)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
