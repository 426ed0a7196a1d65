"""The unit of noise: the standard deviation of each column of features, and of each channel of series and volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemble_distill.data.mapped import MappedInputs
from ensemble_distill.data.several import apart
from ensemble_distill.data.source import Array, Item, Kind, Scale


def unit_of(rows: Sequence[Array] | Array | MappedInputs, kind: Kind) -> Scale | None:
    """float32 (F,) of features, (C, 1) of series and (C, 1, 1, 1) of volumes, over all rows; None of any other kind. Of
    several arrays that of each which has one.

    Args:
        rows: each as its item has it, (N, …) or one after the other: each is read once and need not be kept.
    """
    if kind == "several":
        return _of_each(rows)
    if kind == "features":
        if isinstance(rows, MappedInputs):
            return mapped_scale(rows)
        return column_scale(rows if isinstance(rows, np.ndarray) else np.stack(list(rows)))
    return channel_scale(rows) if kind in ("series", "volume") else None


class _One(Sequence[Array]):
    """One of several arrays of each row."""

    def __init__(self, rows: Sequence[Array] | Array | MappedInputs, name: str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return apart(Item(self.rows[row], None, "several"))[self.name].x


def _of_each(rows: Sequence[Array] | Array | MappedInputs) -> Mapping[str, Array]:
    found = {name: unit_of(_One(rows, name), one.kind) for name, one in apart(Item(rows[0], None, "several")).items()}
    return {name: unit for name, unit in found.items() if isinstance(unit, np.ndarray)}


def column_scale(x: Array) -> Array:
    """Standard deviation of each column, float32 (F,), of features (N, F); 0 for a constant column, which stays
    as it is: members never learned what to do with another value there."""
    varies = x.min(axis=0) < x.max(axis=0)  # a constant's own deviation may round to a little above 0
    return np.where(varies, x.std(axis=0, dtype=np.float64), 0.0).astype(np.float32)


def mapped_scale(rows: MappedInputs) -> Array:
    """`column_scale` of rows that are read some at a time, to the last bit: NumPy, too, adds row after row."""
    if rows.shape[1] == 1:  # which it adds in pairs, and which is small
        return column_scale(np.concatenate(list(rows.blocks())))
    lowest = np.min([block.min(axis=0) for block in rows.blocks()], axis=0)
    highest = np.max([block.max(axis=0) for block in rows.blocks()], axis=0)
    mean = _summed(block.astype(np.float64) for block in rows.blocks()) / len(rows)
    squares = _summed((block - mean) ** 2 for block in rows.blocks())
    return np.where(lowest < highest, np.sqrt(squares / len(rows)), 0.0).astype(np.float32)


def _summed(blocks: Iterator[Array]) -> Array:
    """Of each column, float64 (F,)."""
    total: Array = next(blocks).sum(axis=0)
    for block in blocks:
        total = np.concatenate([total[None], block]).sum(axis=0)
    return total


def channel_scale(rows: Sequence[Array] | Array | MappedInputs) -> Array:
    """Standard deviation of each channel, float32 (C, 1, …), over rows (C, …) and the positions in them; 0 for one that
    is constant. One pass (Chan, Golub and LeVeque 1979), so that rows may come from a disk."""
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    lowest, highest = np.full((), np.inf), np.full((), -np.inf)
    for at in range(len(rows)):
        row = rows[at]
        flat = row.reshape(len(row), -1).astype(np.float64)
        more = flat.shape[1]
        own = flat.mean(axis=1)
        away = own - mean
        squares = squares + ((flat - own[:, None]) ** 2).sum(axis=1) + away**2 * (count * more / (count + more))
        mean = mean + away * (more / (count + more))
        count += more
        lowest, highest = np.minimum(lowest, flat.min(axis=1)), np.maximum(highest, flat.max(axis=1))
    deviation = np.where(lowest < highest, np.sqrt(squares / count), 0.0).astype(np.float32)
    return deviation.reshape(-1, *(1,) * (rows[0].ndim - 1))
