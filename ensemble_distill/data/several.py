"""Rows of several arrays: packed into one array of bytes that describes itself, and sources side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from ensemble_distill.data.digests import several_digest
from ensemble_distill.data.source import Array, Item, Kind, Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import InputColumns, RowArray
from ensemble_distill.facts.several import unfit

NUMBERS = "x"  # the name of a table's numbers among other arrays
ALIGNED = 16  # bytes

_Layout = tuple[tuple[str, Kind, str, tuple[int, ...], int], ...]  # name, kind, dtype, shape, offset in bytes


def joined(parts: Mapping[str, Item], y: Array | None = None) -> Item:
    """Packs several items, by name, into one.

    Its x is uint8 (n,): the length of a JSON header in 8 bytes, the header, which lists each array's name, kind, dtype
    and shape, and then the arrays, each aligned to 16 bytes.
    """
    layout = [[name, item.kind, item.x.dtype.str, list(item.x.shape)] for name, item in parts.items()]
    line = json.dumps(layout).encode()
    pieces = [np.array([len(line)], "<i8").view(np.uint8), np.frombuffer(line, np.uint8)]
    size = 8 + len(line)
    for item in parts.values():
        gap = -size % ALIGNED
        pieces += [np.zeros(gap, np.uint8), np.ascontiguousarray(item.x).reshape(-1).view(np.uint8)]
        size += gap + item.x.nbytes
    return Item(np.concatenate(pieces), y, "several")


def apart(item: Item) -> dict[str, Item]:
    """Unpacks an item that `joined` packed; each array's item has the label of the row."""
    length = int(item.x[:8].view("<i8")[0])
    found = {}
    for name, kind, dtype, shape, start in _layout(item.x[8 : 8 + length].tobytes()):
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        found[name] = Item(item.x[start:stop].view(dtype).reshape(shape), item.y, kind)
    return found


@lru_cache(maxsize=1024)
def _layout(line: bytes) -> _Layout:
    found, at = [], 8 + len(line)
    for name, kind, dtype, shape in json.loads(line):
        at += -at % ALIGNED
        found.append((name, kind, dtype, tuple(shape), at))
        at += math.prod(shape) * np.dtype(dtype).itemsize
    return tuple(found)


def arrays_in(item: Item) -> tuple[RowArray, ...]:
    """The arrays of a row of several."""
    return tuple(RowArray(name, part.kind, part.x.shape) for name, part in apart(item).items())


def arrays_of(source: Source) -> tuple[RowArray, ...] | None:
    """The arrays of each row of a source; None if a row is one array."""
    return arrays_in(source.item(0)) if source.kind == "several" else None


def held(source: Source) -> str:
    """What rows hold, in words: "features", or "pixel_values (pixels) and x (features 3)"."""
    arrays = arrays_of(source)
    if arrays is None:
        return "pairs of texts" if source.kind == "text" and of_pairs(source) else source.kind
    return arrays_told(arrays)


def of_pairs(source: Source) -> bool:
    """Whether rows are pairs of texts."""
    columns: InputColumns | None = getattr(source, "columns", None)
    return columns is not None and len(columns.texts) == 2


def arrays_told(arrays: Sequence[RowArray]) -> str:
    *others, last = [array.told for array in arrays]
    return f"{', '.join(others)} and {last}" if others else last


def refuse_unfit(names: Sequence[str], where: str) -> None:
    """Raise EdistillError for a name that cannot be a network's argument."""
    for name in names:
        if (why := unfit(name)) is not None:
            raise EdistillError(
                f"{where} has an array {name!r}, {why}. Call it otherwise: networks take it by its name."
            )


class Beside:
    """Sources whose rows belong together: row i is row i of each.

    Args:
        parts: the sources by the names of their arrays; at least one, of equal length.
        labels, classes, remarks: see `Source`.
        columns: the columns of a table that a row is made of; None without a table.
    """

    kind: Kind = "several"

    def __init__(
        self,
        parts: Mapping[str, Source],
        labels: Array | None,
        classes: tuple[str, ...] | None,
        remarks: Sequence[str] = (),
        columns: InputColumns | None = None,
    ) -> None:
        self.parts, self.labels, self.classes = dict(parts), labels, classes
        self.remarks, self.columns = tuple(remarks), columns

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def item(self, row: int) -> Item:
        items = {name: part.item(row) for name, part in self.parts.items()}
        return joined(items, None if self.labels is None else self.labels[row])

    def name(self, row: int) -> str:
        """The name of the row's picture if it has one, otherwise that of the first part."""
        parts = list(self.parts.values())
        return next((part for part in parts if part.kind == "pixels"), parts[0]).name(row)

    @property
    def scale(self) -> Mapping[str, Array]:
        """The scale of each array that has one."""
        return {name: part.scale for name, part in self.parts.items() if isinstance(part.scale, np.ndarray)}

    @property
    def groups(self) -> tuple[int, ...] | None:
        """(F,) the index of each number's column; see `Table`. None if no part is a table."""
        return next((part.groups for part in self.parts.values() if hasattr(part, "groups")), None)

    @property
    def features(self) -> tuple[str, ...] | None:
        """(F,) the names of a table's numbers; None if no part is a table."""
        return next((part.features for part in self.parts.values() if hasattr(part, "features")), None)

    @cached_property
    def digest(self) -> str:
        return several_digest({name: part.digest for name, part in self.parts.items()}, self.labels, self.classes)

    @property
    def digest_scope(self) -> str:
        scopes = dict.fromkeys(part.digest_scope for part in self.parts.values())
        return f"{len(self.parts)} arrays a row: {'; '.join(scopes)}"
