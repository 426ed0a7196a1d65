"""Some rows of another source."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from ensemble_distill.data.digests import subset_digest
from ensemble_distill.data.scale import unit_of
from ensemble_distill.data.source import Array, Inputs, Item, Scale, Source
from ensemble_distill.data.stored import read_npy
from ensemble_distill.data.wrapping import Wrapping
from ensemble_distill.errors import EdistillError


class Subset(Wrapping):
    """Row i is row `rows[i]` of the whole source; labels, names and digest follow.

    Args:
        whole: the source the rows are taken from.
        rows: (n,) int64, each in range(len(whole)).
    """

    def __init__(self, whole: Source, rows: Array) -> None:
        super().__init__(whole)
        self.rows = rows
        self.kind, self.classes, self.remarks = whole.kind, whole.classes, whole.remarks
        self.token_unit = getattr(whole, "token_unit", None)

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, row: int) -> Item:
        return self.inner.item(int(self.rows[row]))

    def name(self, row: int) -> str:
        return self.inner.name(int(self.rows[row]))

    @cached_property
    def labels(self) -> Array | None:
        labels = self.inner.labels
        return None if labels is None else labels[self.rows]

    @cached_property
    def scale(self) -> Scale | None:
        parts: Mapping[str, Source] | None = getattr(self.inner, "parts", None)
        if parts is not None:
            units = {name: Subset(part, self.rows).scale for name, part in parts.items()}
            return {name: unit for name, unit in units.items() if isinstance(unit, np.ndarray)}
        own = unit_of(Inputs(self), self.kind)
        return (
            own
            if not isinstance(own, np.ndarray) or self.numeric is None
            else np.where(self.numeric, own, np.float32(0))
        )

    @cached_property
    def digest(self) -> str:
        return subset_digest(self.inner.digest, self.rows)

    @property
    def digest_scope(self) -> str:
        return f"{self.inner.digest_scope}; which {len(self)} rows"


class Limited(Subset):
    """The rows that a limit leaves in a split."""


def in_split(source: object) -> tuple[int, Array] | None:
    """How many rows a split has without its limit, and which of them a source takes; None if no limit cut it."""
    at: Array | slice = slice(None)
    while isinstance(source, Wrapping):
        if isinstance(source, Limited):
            return len(source.inner), source.rows[at]
        if isinstance(source, Subset):
            at = source.rows[at]
        source = source.inner
    return None


def read_rows(file: str, total: int) -> Array:
    """The rows that a `.npy` lists, int64 (n,), in its order.

    Raises:
        EdistillError: not a one-dimensional array of whole numbers, or a row out of range or listed twice.
    """
    rows = read_npy(Path(file), "rows")
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
        raise EdistillError(
            f"rows: {file} holds {rows.dtype} {rows.shape}. Store a one-dimensional array of row numbers."
        )
    if rows.max() >= 2**63:  # int64 would make it negative
        raise EdistillError(f"rows: {file} lists row {rows.max()}, and the source has rows 0 to {total - 1}.")
    rows = rows.astype(np.int64)
    outside = (rows < 0) | (rows >= total)
    if outside.any():
        raise EdistillError(
            f"rows: {file} lists row {rows[outside.argmax()]}, but the source has rows 0 to {total - 1}. "
            "Make the list for this source."
        )
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise EdistillError(
            f"rows: {file} lists row {values[counts.argmax()]} {counts.max()} times. List each row once: "
            "numpy.unique(rows)."
        )
    return rows
