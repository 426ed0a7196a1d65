"""The unit of noise: the standard deviation of each column of features, and of each channel of series and volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemble_distill.data.mapped import MappedInputs
from ensemble_distill.data.several import apart
from ensemble_distill.data.source import Array, Item, Kind, Scale


def unit_of(rows: Sequence[Array] | Array | MappedInputs, kind: Kind) -> Scale | None:
    """The standard deviations over all rows; for several arrays a row, those of each array that has them, by name.

    Args:
        rows: (N, …), or a sequence of rows, in the form that items have.

    Returns:
        float32 (F,) for features, (C, 1) for series and (C, 1, 1, 1) for volumes; None for any other kind.
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
    """The standard deviation of each column, float32 (F,), of features (N, F).

    It is 0 for a constant column, which then gets no noise: members never learned what another value means there.
    """
    varies = x.min(axis=0) < x.max(axis=0)  # a constant's deviation may round to a little above 0
    return np.where(varies, x.std(axis=0, dtype=np.float64), 0.0).astype(np.float32)


def mapped_scale(rows: MappedInputs) -> Array:
    """`column_scale` of rows that are read in blocks, equal to the last bit: NumPy, too, adds row after row."""
    if rows.shape[1] == 1:  # NumPy adds a single column pairwise; it is small enough to read whole
        return column_scale(np.concatenate(list(rows.blocks())))
    lowest = np.min([block.min(axis=0) for block in rows.blocks()], axis=0)
    highest = np.max([block.max(axis=0) for block in rows.blocks()], axis=0)
    mean = _summed(block.astype(np.float64) for block in rows.blocks()) / len(rows)
    squares = _summed((block - mean) ** 2 for block in rows.blocks())
    return np.where(lowest < highest, np.sqrt(squares / len(rows)), 0.0).astype(np.float32)


def _summed(blocks: Iterator[Array]) -> Array:
    """The sum of each column, float64 (F,), added row after row across blocks."""
    total: Array = next(blocks).sum(axis=0)
    for block in blocks:
        total = np.concatenate([total[None], block]).sum(axis=0)
    return total


def channel_scale(rows: Sequence[Array] | Array | MappedInputs) -> Array:
    """The standard deviation of each channel, float32 (C, 1, …), over rows (C, …) and their positions.

    It is 0 for a constant channel. One pass (Chan, Golub and LeVeque 1979), so that rows may be read from disk.
    """
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
