"""Converts a column of lists or tensors of numbers, each a whole row, to one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemble_distill.data.reading_arrow import Columnar
from ensemble_distill.data.source import Array
from ensemble_distill.errors import EdistillError

ALIKE = "Give every row a list or tensor of numbers of the same shape, without gaps, or drop the row."


def as_array(block: Mapping[str, Sequence[Any]], column: str, named: str, first_row: int) -> Array:
    """A column's values in some rows, (B, …).

    Args:
        block: the rows, by column.
        named: what the column is, for messages.
        first_row: the number of the first row, for messages.

    Raises:
        EdistillError: a value is not a list or tensor of numbers, or has another shape than the first.
    """
    if isinstance(block, Columnar):
        return _of_arrow(block.column(column), named, first_row)
    values = block[column]
    rows = [_of_python(value, named, first_row + at) for at, value in enumerate(values)]
    refuse_other(rows[0].shape, [row.shape for row in rows], named, first_row)
    return np.stack(rows)


def refuse_other(first: tuple[int, ...], shapes: Sequence[tuple[int, ...]], named: str, first_row: int) -> None:
    """Raise EdistillError if one of the rows' shapes differs from the first row's."""
    odd = next((at for at, shape in enumerate(shapes) if shape != first), None)
    if odd is not None:
        raise EdistillError(f"{named} is of shape {shapes[odd]} at row {first_row + odd}, and {first} before. {ALIKE}")


def _of_python(value: Any, named: str, row: int) -> Array:
    try:
        if not isinstance(value, list):
            raise ValueError(f"it is {value!r:.60}")
        found = np.array(value)
        if found.dtype.kind not in "fiu":
            raise ValueError(f"it makes an array of {found.dtype}")
    except ValueError as error:
        raise EdistillError(f"{named} holds no numbers of one shape at row {row}: {error}. {ALIKE}") from None
    return found


def _of_arrow(column: Any, named: str, first_row: int) -> Array:
    import pyarrow
    import pyarrow.types as types

    kind, rows = column.type, len(column)
    sides: list[int] = []
    if isinstance(kind, pyarrow.FixedShapeTensorType):
        sides = list(kind.shape)
        if kind.permutation is not None and list(kind.permutation) != sorted(kind.permutation):
            raise EdistillError(f"{named} holds {kind}, whose axes are permuted. Store it in the order of C.")
    if isinstance(kind, pyarrow.BaseExtensionType):
        column = column.storage
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        _refuse_gaps(column, named, first_row, rows)
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if len(lengths) and (lengths != lengths[0]).any():
            at = int((lengths != lengths[0]).argmax())
            row = first_row + at // (len(lengths) // rows)
            raise EdistillError(
                f"{named} has {lengths[at]} values beside each other at row {row}, and {lengths[0]} before. {ALIKE}"
            )
        if not isinstance(kind, pyarrow.FixedShapeTensorType):
            sides.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    if not sides or not (types.is_integer(column.type) or types.is_floating(column.type)):
        raise EdistillError(f"{named} holds {kind}, which are no lists or tensors of numbers. {ALIKE}")
    _refuse_gaps(column, named, first_row, rows)
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(rows, *sides)


def _refuse_gaps(column: Any, named: str, first_row: int, rows: int) -> None:
    """Raise EdistillError if a value is missing."""
    if column.null_count:
        at = int(column.is_null().to_numpy(zero_copy_only=False).argmax())
        raise EdistillError(f"{named} lacks a value at row {first_row + at // max(1, len(column) // rows)}. {ALIKE}")
