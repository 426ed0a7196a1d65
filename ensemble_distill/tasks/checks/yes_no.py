"""Checks of multi-label data: several yes/no labels per row, and members that answer each label separately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.labels import Array
from ensemble_distill.tasks.checks.remedies import remedy

if TYPE_CHECKING:
    from torch import Tensor

SUSPICIOUS = 8  # rows that must all look like a softmax
NEAR = 0.05  # numbers no farther beyond 0 and 1 are inexact probabilities, not logits
ENOUGH = 1_000  # numbers that must all look like sigmoids
LABELS = 10  # rare labels, too many for all their logits to lie above 0 by chance


def as_labels(y: Array, rows: int, named: str, classes: Sequence[str] | None, first_row: int = 0) -> Array:
    """Labels 0 and 1 as int64 (rows, K); see `Task.as_labels`.

    Raises:
        EdistillError: a wrong shape or dtype, a value other than 0 and 1, or not one column per name.
    """
    where = f"{named} of row {first_row}" if rows == 1 else named
    if y.ndim != 2 or len(y) != rows or y.shape[1] == 0:
        one = y.shape == (rows,)
        raise EdistillError(
            f"{where} has shape {y.shape} for {rows} rows of x, and multi-label data has (rows, labels). "
            + ('For one class a row set task = "classification".' if one else "Give a column of 0 and 1 a label.")
        )
    if y.dtype.kind not in "biuf":
        raise EdistillError(f"{named} is {y.dtype}. Labels are 0 and 1: store a matrix of int64.")
    wrong = ((y != 0) & (y != 1)).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise EdistillError(
            f"{named} is {y[row].tolist()[:8]} at row {first_row + row}. Labels are 0 and 1 each: "
            "settle each of that row's, or drop it."
        )
    if classes is not None and y.shape[1] != len(classes):
        raise EdistillError(
            f"{where} has {y.shape[1]} columns, and there are {len(classes)} names. Name every label, in the order of "
            "the columns."
        )
    return y.astype(np.int64)


def as_logits(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Raw outputs (B, K) as logits ln p − ln (1 − p), in the data's order.

    Raises:
        EdistillError: an output is not finite, or declared probabilities are not probabilities.
    """
    from ensemble_distill.tasks.checks.logits import FLOOR, in_data_order, outside, refuse_not_finite

    refuse_not_finite(values, member, split, rows)
    if member.output == "probabilities":
        wrong = outside(values)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise EdistillError(
                f"Member {member.name} is said to return probabilities, but at row {rows[at]} of {split} they lie "
                f"between {values[at].min():.4f} and {values[at].max():.4f}. {_instead(values, member)}"
            )
        p = np.clip(values.astype(np.float64), FLOOR, 1 - FLOOR)
        values = (np.log(p) - np.log1p(-p)).astype(np.float32)
    return in_data_order(values, member)


def _instead(values: NDArray[np.float32], member: Member) -> str:
    """What to do about declared probabilities (B, K), some of which lie outside 0 to 1."""
    from ensemble_distill.tasks.checks.logits import outside

    if values.min() > -NEAR and values.max() < 1 + NEAR:
        return remedy(member, "out.clamp(0, 1)")
    if outside(values).mean() > 0.5:
        return 'Set teachers.output = "logits".'
    return "Fix what it says of that row, or remove the row from the data."


def refuse_sigmoids(logits: Array, labels: Array, member: Member) -> str | None:
    """Raise EdistillError if declared logits (N, K) of a split are plainly sigmoids.

    They are if all lie between 0 and 1 though many labels (N, K) are rare. The logits of an honest network that has
    hardly learned may lie there too, if those of its rare labels are above 0 by chance. Fewer than `LABELS` rare labels
    are therefore evidence only if the logits spread down to 0, as sigmoids do.

    Returns:
        A warning if all lie between 0 and 1 and the evidence is not enough; None if they do not.
    """
    inside = logits.size >= ENOUGH and logits.min() >= 0 and logits.max() <= 1
    if member.output != "logits" or not inside or not np.ptp(logits, axis=0).any():
        return None
    told = (
        f"said to return logits, but all {logits.size:,} numbers lie between {logits.min():.4f} and "
        f"{logits.max():.4f}, as those of a sigmoid do"
    )
    rare = (labels.mean(axis=0) < 0.5).sum()
    if rare >= LABELS or np.median(logits.mean(axis=0) - logits.std(axis=0)) < 0:
        raise EdistillError(f'Member {member.name} is {told}. Set teachers.output = "probabilities".')
    return f'member {member.name} is {told}: if they are sigmoids, set teachers.output = "probabilities".'


def as_answers(raw: Tensor, member: Member) -> Tensor:
    """`as_logits` for raw outputs (B, K), in torch and unchecked."""
    from ensemble_distill.tasks.checks.logits import FLOOR, tensor_in_data_order

    values = raw.float()
    if member.output == "probabilities":
        p = values.double().clamp(FLOOR, 1 - FLOOR)
        values = (p.log() - (1 - p).log()).float()
    return tensor_in_data_order(values, member)


def refuse_softmax(values: NDArray[Any], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError if outputs (B, K) of a few rows are plainly a softmax, or declared logits are sigmoids."""
    if len(rows) < SUSPICIOUS or values.shape[1] < 2 or not np.isfinite(values).all():
        return
    inside = values.min() >= 0 and values.max() <= 1
    if inside and np.abs(values.sum(axis=1) - 1).max() < 1e-3:
        raise EdistillError(
            f"Member {member.name} returns numbers from {values.min():.4f} to {values.max():.4f} that sum to 1 at each "
            f"of {len(rows)} rows of {split}: a softmax, which chooses one class, and multi-label members answer each "
            'label by itself. Set task = "classification", or give members that end in a sigmoid a label.'
        )
    if inside and member.output == "logits" and np.median(values.max(axis=1)) > 0.5 and values.min() < values.max():
        raise EdistillError(
            f"Member {member.name} is said to return logits, but at {len(rows)} rows of {split} all lie between "
            f'{values.min():.4f} and {values.max():.4f}: sigmoids. Set teachers.output = "probabilities".'
        )
