"""Labels and answers of rows that are predicted position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member

Array = NDArray[Any]

IGNORED = -100  # the label of a position that does not count, as in torch's cross_entropy
ENOUGH = 500  # positions; fewer do not show what answers mean
SURE, ABOVE = 4.0, 0.02  # a member's mean probability may exceed this factor times its accuracy by this much


def as_labels(
    y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
) -> NDArray[np.int64]:
    """One class per position, or `IGNORED`, as int64 (rows, L); see `Task.as_labels`.

    Raises:
        EdistillError: a wrong shape or dtype, or a value that is not a class.
    """
    if y.ndim != 2 or len(y) != rows or not y.size:
        raise EdistillError(
            f"{named} has shape {y.shape} for {rows} rows of x. Give (rows, L): a class for each of a row's last L "
            f"positions, and {IGNORED} for those that count for nothing."
        )
    if y.dtype.kind not in "iu":
        raise EdistillError(f"{named} is {y.dtype}. Classes are whole numbers from 0: store y.astype('int64').")
    y = y.astype(np.int64)
    most = np.iinfo(np.int64).max if classes is None else len(classes)
    wrong = ((y < 0) & (y != IGNORED)) | (y >= most)
    if wrong.any():
        row, at = (int(index) for index in np.argwhere(wrong)[0])
        known = "classes are numbered from 0" if classes is None else f"there are {len(classes)} classes"
        raise EdistillError(
            f"{named} is {y[row, at]} at position {at} of row {first_row + row}, and {known}. Give one of them, or "
            f"{IGNORED} for a position that counts for nothing."
        )
    return y


def refuse_all_ignored(labels: Array | None, named: str) -> None:
    """Raise EdistillError if no position of a split counts."""
    if labels is not None and not (labels != IGNORED).any():
        raise EdistillError(
            f"{named} has {labels.size} labels, and all are {IGNORED}, which are ignored. Give at least one position "
            "that counts, or leave y out."
        )


def gist(answers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The likeliest class of each position and its probability, (B, L, 2), from logits (B, L, K)."""
    top = answers.argmax(-1)
    likeliest = np.take_along_axis(answers, top[..., None], -1)[..., 0]
    probability = np.exp(likeliest - np.logaddexp.reduce(answers, axis=-1))
    return np.stack([top.astype(np.float32), probability], axis=-1)


def refuse_other_vocabulary(member: Member, gist: Array, labels: Array) -> None:
    """Raise EdistillError if a member is far surer than it is right, since its ids then mean other tokens.

    Args:
        member: the member.
        gist: (N, L, 2), as `gist` returns it.
        labels: (N, L).
    """
    counts = labels != IGNORED
    if counts.sum() < ENOUGH:
        return
    right = float((gist[..., 0] == labels)[counts].mean())
    sure = float(gist[..., 1][counts].mean())
    if sure > SURE * right + ABOVE:
        raise EdistillError(
            f"Member {member.name} is sure of its likeliest class by {sure:.3f} on average, and right in {right:.3f} "
            f"of {int(counts.sum())} positions: its ids mean other tokens or classes than the data's. Give the "
            "vocabulary that it was trained with (tokens.vocabulary), or take the member out of teachers.path."
        )
