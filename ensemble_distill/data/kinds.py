"""Tells pixels, tensors, series, volumes and features apart by dtype and shape, and converts each to its own form."""

from __future__ import annotations

import numpy as np

from ensemble_distill.data.source import Array, Kind
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import RANKS
from ensemble_distill.facts.several import WHOLE

LARGEST_ID = 2**31 - 1

ACCEPTED = (
    "Accepted are uint8 pixels (H, W) or (H, W, C), and floats, which get no preprocessing: features (F,), series "
    "(C, L), tensors (C, H, W) and volumes (C, D, H, W)"
)
OF_FLOATS: dict[int, Kind] = {RANKS[kind]: kind for kind in ("features", "series", "tensor", "volume")}


def as_inputs(x: Array, named: str, first_row: int = 0) -> tuple[Array, Kind]:
    """A batch of examples in the form that items have, and its kind.

    Args:
        x: (N, ...) as the user stores it.
        named: what x is, for messages.
        first_row: the row number of x[0], for messages.

    Returns:
        uint8 (N, H, W, C) pixels, or float32: (N, C, H, W) tensors, (N, F) features, (N, C, L) series, (N, C, D, H, W)
        volumes.

    Raises:
        EdistillError: another dtype or shape, or a NaN or infinite value.
    """
    found = f"{named} holds {x.dtype} of shape {x.shape[1:]} per row"
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if x.size == 0:
            raise EdistillError(f"{found}, which is empty. {ACCEPTED}.")
        if x.ndim == 4 and x.shape[3] > 4 >= x.shape[1]:
            raise EdistillError(
                f"{found}: {x.shape[3]} channels. Put the channels last, (H, W, C): numpy.moveaxis(x, -3, -1)."
            )
        return (x if x.ndim == 4 else x[..., None]), "pixels"
    if x.dtype.kind != "f" or x.ndim - 1 not in OF_FLOATS or x.size == 0:
        raise EdistillError(f"{found}. {ACCEPTED}.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x)
    if not finite.all():
        row, *where = (int(index) for index in np.argwhere(~finite)[0])
        raise EdistillError(
            f"{named} is {x[row][tuple(where)]} at {tuple(where)} of row {first_row + row}, as float32. "
            "Fix or drop that row."
        )
    return x, OF_FLOATS[x.ndim - 1]


def as_ids(x: Array, named: str, first_row: int = 0, count: int | None = None) -> Array:
    """Token ids as int64 (N, L).

    Args:
        x: (N, L) as the user stores it.
        named, first_row: as for `as_inputs`.
        count: the size of the vocabulary; None if it is unknown.

    Raises:
        EdistillError: another dtype or shape, or an id that no token has.
    """
    if x.dtype.kind not in "iu" or x.ndim != 2 or x.size == 0:
        raise EdistillError(
            f"{named} holds {x.dtype} of shape {x.shape[1:]} per row, and tokens are whole numbers (L,). Store ids as "
            "int64."
        )
    outside = (x < 0) | (x >= (LARGEST_ID if count is None else count))
    if outside.any():
        row, at = (int(index) for index in np.argwhere(outside)[0])
        has = "ids are 0 or more" if count is None else f"the vocabulary has ids 0 to {count - 1}"
        raise EdistillError(
            f"{named} has token {x[row, at]} at position {at} of row {first_row + row}, and {has}. Give the ids of the "
            "vocabulary that the members were trained with."
        )
    return x.astype(np.int64)


def as_part(x: Array, named: str, first_row: int = 0) -> tuple[Array, Kind]:
    """A batch of one of a row's several arrays, and its kind: as `as_inputs`, or whole numbers (N, L) as int64.

    Raises:
        EdistillError: as `as_inputs` does, or a whole number is below 0 or not below 2**24.
    """
    if x.dtype.kind not in "iu" or x.dtype == np.uint8 or x.ndim != 2 or x.size == 0:
        return as_inputs(x, named, first_row)
    outside = (x < 0) | (x >= WHOLE)
    if outside.any():
        row, at = (int(index) for index in np.argwhere(outside)[0])
        raise EdistillError(
            f"{named} is {x[row, at]} at {at} of row {first_row + row}, and whole numbers are 0 to {WHOLE - 1}. Fix "
            "or drop that row, or store it as float32."
        )
    return x.astype(np.int64), "tokens"


def taken(x: Array, named: str, of_tokens: bool, first_row: int = 0) -> tuple[Array, Kind]:
    """A batch and its kind: `as_ids` for tasks of tokens, otherwise `as_inputs`."""
    return (as_ids(x, named, first_row), "tokens") if of_tokens else as_inputs(x, named, first_row)
