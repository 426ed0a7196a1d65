"""Checks of a user's labels, and their conversion to each task's dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError

Array = NDArray[Any]

OF_SEVERAL = ' For several labels a row set task = "multi-label", for several numbers task = "regression".'
OR_SEVERAL = " Of several targets give (rows, targets)."
COARSE = 30  # float32 steps that a standard deviation of the targets needs: rounding is then a hundredth of it


def as_class_labels(y: Array, rows: int, named: str, classes: Sequence[str] | None, first_row: int = 0) -> Array:
    """Classes as int64 (rows,); see `Task.as_labels`.

    Raises:
        EdistillError: a wrong shape or dtype, or a class below 0 or without a name.
    """
    _refuse_other_shape(y, (rows,), named, first_row, OF_SEVERAL)
    if y.dtype.kind not in "biu":
        raise EdistillError(f"{named} is {y.dtype}. Classes are whole numbers from 0: {_numbered(y)}.")
    y = y.astype(np.int64)
    _refuse(y < 0, y, f"{named} is negative", "Number the classes from 0.", first_row)
    if classes is not None:
        wrong = f"{named} has no name among the {len(classes)} classes"
        _refuse(y >= len(classes), y, wrong, "Name every class, in the order of the labels.", first_row)
    return y


def as_targets(y: Array, rows: int, named: str, first_row: int = 0) -> Array:
    """Targets as float32 (rows,), or (rows, D) if there are several; see `Task.as_labels`.

    Raises:
        EdistillError: a wrong shape or dtype, or a target that is not finite.
    """
    if y.ndim == 2 and y.shape[0] == rows and y.shape[1] > 0:
        if y.shape[1] == 1:
            return as_targets(y[:, 0], rows, named, first_row)
        columns = [as_targets(column, rows, f"{named}[:, {at}]", first_row) for at, column in enumerate(y.T)]
        return np.stack(columns, axis=1)
    _refuse_other_shape(y, (rows,), named, first_row, OR_SEVERAL)
    if y.dtype.kind not in "biuf":
        raise EdistillError(f"{named} is {y.dtype}. Targets of regression are numbers: store float32.")
    with np.errstate(over="ignore"):
        y = y.astype(np.float32)
    _refuse(~np.isfinite(y), y, f"{named} is not finite", "Fix or drop that row.", first_row)
    return y


def refuse_coarse(targets: Array, named: str) -> None:
    """Raise EdistillError if float32 hardly resolves targets (N,) or (N, D).

    Only the training split is checked: a small split, or one whose targets are nearly equal, does not show how finely
    targets must be resolved.
    """
    for at, y in enumerate(targets.reshape(len(targets), -1).T):
        spread = float(y.std(dtype=np.float64))
        if 0 < spread < COARSE * float(np.spacing(np.abs(y).max())):
            of = f"{named}, target {at}," if targets.ndim == 2 else named
            raise EdistillError(
                f"{of} lies about {float(y.mean(dtype=np.float64)):.9g} and varies by {spread:.3g}, which float32 "
                "does not resolve. Take a constant off the targets, and off what the members return."
            )


def as_classes(names: Sequence[object], named: str) -> tuple[str, ...]:
    """Class names in the order of the labels.

    Raises:
        EdistillError: a name occurs twice.
    """
    classes = tuple(str(name) for name in names)
    if len(set(classes)) < len(classes):
        (twice, _), *_ = Counter(classes).most_common(1)
        raise EdistillError(f"{named} names {twice!r} twice. Give every class its own name.")
    return classes


def _refuse_other_shape(y: Array, wanted: tuple[int, ...], named: str, first_row: int, of_several: str = "") -> None:
    if y.shape == wanted:
        return
    if y.shape[:1] == (1,) == wanted[:1]:
        raise EdistillError(f"{named} of row {first_row} has shape {y.shape[1:]}. Return one number.{of_several}")
    raise EdistillError(f"{named} has shape {y.shape} for {wanted[0]} rows of x. Give one number a row.{of_several}")


def _numbered(y: Array) -> str:
    """How to convert labels to whole numbers, or which task to set instead."""
    if y.dtype.kind in "US":
        return "store classes, y = numpy.unique(y, return_inverse=True)"
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.rint(y)).all():
        return "store y.astype('int64')"
    return 'for numbers set task = "regression"'


def _refuse(bad: Array, y: Array, wrong: str, remedy: str, first_row: int) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise EdistillError(f"{wrong}: {y[row]} at row {first_row + row}. {remedy}")
