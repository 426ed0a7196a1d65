"""What classifiers return, as logits in the data's class order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.remedies import remedy

OF_ONE = "out.unsqueeze(1) * out.new_tensor([0, 1])"  # two logits of the one that says "not 0"
SUSPICIOUS = 8  # rows that all look like probabilities
FLOOR = 1e-7  # probabilities of members that return probabilities are raised to this before the logarithm


def joined(
    raw: Any, rows: int, member: Member, wanted: str = "a classifier returns (rows, classes)", of_one: str = OF_ONE
) -> Tensor:
    """The output as one tensor (B, K). Raises EdistillError when it is none.

    Args:
        wanted: in words.
        of_one: how a single number a row becomes that.
    """
    if isinstance(raw, Tensor):
        raw = raw.detach().to_dense() if raw.is_sparse else raw.detach()
    if not isinstance(raw, Tensor) or raw.dim() != 2 or len(raw) != rows:
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise EdistillError(
            f"Member {member.name} returns {got} for {rows} rows; {wanted}. " + _as_matrix(raw, rows, member, of_one)
        )
    return raw


def checked(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Raw outputs (B, K) as logits in the data's class order.

    Raises:
        EdistillError: an output is NaN or infinite, or "probabilities" are none.
    """
    refuse_not_finite(values, member, split, rows)
    shares = len(rows) >= SUSPICIOUS and values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < 1e-3
    if member.output == "logits" and shares:
        raise EdistillError(
            f"Member {member.name} is said to return logits, but at rows {rows[0]} to {rows[-1]} of {split} they are "
            'all 0 or more and sum to 1: probabilities. Set teachers.output = "probabilities".'
        )
    if member.output == "probabilities":
        sums = values.sum(axis=1)
        wrong = (values.min(axis=1) < -1e-6) | (np.abs(sums - 1) > 1e-3)
        if wrong.any():
            at = int(np.argmax(wrong))
            alone = values.min() >= 0 and values.max() <= 1 and wrong.mean() > 0.5  # and not a row at fault
            raise EdistillError(
                f"Member {member.name} is said to return probabilities, but at row {rows[at]} of {split} the least is "
                f"{values[at].min():.4f} and they sum to {sums[at]:.4f}. "
                + (f"All lie between 0 and 1: {_sigmoids(member)}" if alone else 'Set teachers.output = "logits".')
            )
        values = np.log(np.maximum(values, FLOOR))
    return in_data_order(values, member)


def in_data_order(values: NDArray[np.float32], member: Member) -> NDArray[np.float32]:
    """Outputs (B, K) in the order of the data's names."""
    if member.class_order is None:
        return values
    ordered = np.empty_like(values)
    ordered[:, list(member.class_order)] = values
    return ordered


def as_answers(raw: Tensor, member: Member) -> Tensor:
    """What `checked` makes of raw outputs (B, K), by torch and unchecked."""
    values = raw.float()
    return tensor_in_data_order(values.clamp_min(FLOOR).log() if member.output == "probabilities" else values, member)


def tensor_in_data_order(values: Tensor, member: Member) -> Tensor:
    """As `in_data_order`."""
    return values if member.class_order is None else values[:, np.argsort(member.class_order).tolist()]


def _as_matrix(raw: Any, rows: int, member: Member, of_one: str) -> str:
    """What to do about an output of another shape."""
    if isinstance(raw, Tensor) and raw.dim() != 2 and raw.numel() and len(raw.reshape(-1)) % rows == 0:
        return remedy(member, "out.flatten(1)" if raw.dim() > 2 else of_one)
    return "Let its module do so (teachers.model)."


def refuse_sigmoids(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError for outputs (B, K) that are said to be logits where enough rows lie between 0 and 1, most of
    them with one above a half.

    A softmax does not notice what is added to all logits of a row, so those of an honest member seldom lie there; small
    ones of a network that has hardly learned may. Where others do, something can be added.
    """
    inside = len(rows) >= SUSPICIOUS and values.min() >= 0 and values.max() <= 1
    sure = inside and np.median(values.max(axis=1)) > 0.5 and values.min() < values.max()
    if member.output != "logits" or not sure or np.abs(values.sum(axis=1) - 1).max() < 1e-3:  # see `checked`
        return
    raise EdistillError(
        f"Member {member.name} is said to return logits, but at {len(rows)} rows of {split} all lie between "
        f"{values.min():.4f} and {values.max():.4f}, and at row {rows[0]} they sum to {values[0].sum():.4f}: "
        f"{_sigmoids(member)}"
    )


def _sigmoids(member: Member) -> str:
    """What to do about outputs that look like a sigmoid each. What is taken off all logits of a row changes nothing."""
    logits = 'teachers.output = "logits" and out - 1, if they are logits all the same'
    return 'sigmoids, one a class. Set teachers.output = "probabilities", and let each row sum to 1. ' + remedy(
        member, "out / out.sum(1, keepdim=True)", logits
    )


def refuse_not_finite(values: NDArray[Any], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError naming the first row that is NaN or infinite."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = rows[int(np.argmin(finite))]
        raise EdistillError(
            f"Member {member.name} returns {values[~finite][0][:4]} at row {row} of {split}: not finite. Remove the "
            "member from teachers.path, or the row from the data."
        )
