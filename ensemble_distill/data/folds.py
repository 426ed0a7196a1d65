"""Cross-validation folds: which fold each training row is in, and the training rows with their folds.

Each member was trained without one fold, and only that member answers the fold's rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.stored import read_npy
from ensemble_distill.data.subset import Subset
from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.runtime.names import natural_key


class HeldOut(Subset):
    """The training rows with their folds, which count in the digest.

    Args:
        train: the training rows.
        folds: (N,) int64, the fold of each.
    """

    def __init__(self, train: Source, folds: Array) -> None:
        super().__init__(train, np.arange(len(train)))
        self.folds = folds

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.inner.digest}/folds/".encode() + self.folds.astype("<i8").tobytes()).hexdigest()

    @property
    def digest_scope(self) -> str:
        return f"{self.inner.digest_scope}; and the fold of each row"


def read_folds(file: str, rows: int) -> Array:
    """The fold of each training row, int64 (rows,), from 0.

    Raises:
        EdistillError: not one whole number from 0 for each row.
    """
    folds = read_npy(Path(file), "teachers.folds")
    if folds.shape != (rows,) or folds.dtype.kind not in "iu":
        raise EdistillError(
            f"teachers.folds: {file} holds {folds.dtype} {folds.shape}, and data.train has {rows:,} rows. Store the "
            f"number of the fold that each was held out of, whole numbers ({rows},) from 0."
        )
    if int(folds.min()) < 0:
        row = int(folds.argmin())
        raise EdistillError(
            f"teachers.folds: {file} has fold {folds[row]} at row {row}, and folds are numbered from 0. Rows that none "
            "held out do not belong into data.train then."
        )
    return folds.astype(np.int64)


def refuse_other_folds(folds: Array, members: Sequence[str]) -> None:
    """Raise EdistillError unless there is one fold per member, numbered from 0 to the number of members − 1.

    Member k, in the natural order of the names, is the one that was trained without fold k.

    Args:
        folds: those of all rows, since the rows that a limit leaves may lie in few folds.
    """
    there, named = np.unique(folds), sorted(members, key=natural_key)
    if len(there) != len(members) or int(there.max()) != len(members) - 1:
        raise EdistillError(
            f"teachers.folds has the {len(there)} folds {first_few([str(fold) for fold in there], 6)}, and there are "
            f"{len(members)} members: {first_few(named, 6)}. Member k, in that order, is the one that was "
            f"trained without fold k: number the folds from 0 to {len(members) - 1}, or leave teachers.folds out."
        )
