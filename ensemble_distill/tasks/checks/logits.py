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
SHARED = "out / out.sum(-1, keepdim=True)"
SUSPICIOUS = 8  # rows that all look like probabilities
WITHIN = 1e-3  # beyond 0 and 1 lies what rounding makes of a probability, at most
BFLOAT, DECIMALS = 4e-3, 5e-4  # rounding moves a sum by the first in bfloat16, by the second a class of three decimals
APART = 0.02  # from 1 lies the sum of a row, at most
MANY, ROUGHLY = 100, 0.3  # so many classes, or more, whose sums lie so near to 1 are of a softmax, however rounded
PRECISE = 6  # decimals that are enough for any number of classes
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
    if member.output == "logits" and _are_shares(values):
        raise EdistillError(
            f"Member {member.name} is said to return logits, but at rows {rows[0]} to {rows[-1]} of {split} they are "
            "all 0 or more and sum to 1"
            f"{'' if _off(values).max() < WITHIN else f' within {_off(values).max():.4f}'}: probabilities. "
            'Set teachers.output = "probabilities".'
        )
    if member.output == "probabilities":
        _refuse_no_shares(values, member, split, rows)
        values = np.log(np.maximum(values, FLOOR))
    return in_data_order(values, member)


def _off(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far from 1 each row (B, K) sums to."""
    off: NDArray[np.float32] = np.abs(values.sum(axis=1) - 1)
    return off


def _rounding(classes: int) -> float:
    """How far from 1 the sum of rounded probabilities may lie. A softmax of their logarithms makes it 1 again."""
    return min(BFLOAT + DECIMALS * classes, APART)


def _are_shares(values: NDArray[np.float32]) -> bool:
    """Whether enough rows (B, K) are plainly of a softmax, a rounded one too."""
    classes = values.shape[1]
    limit = ROUGHLY if classes >= MANY else _rounding(classes)
    return len(values) >= SUSPICIOUS and bool(values.min() >= 0 and _off(values).max() <= limit)


def _refuse_no_shares(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError for "probabilities" (B, K) that are none."""
    beyond, off = outside(values), _off(values)
    wrong = beyond | (off > _rounding(values.shape[1]))
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    decimals = next((count for count in range(1, PRECISE) if np.allclose(values, values.round(count), 0, 1e-6)), None)
    if beyond.mean() > 0.5:
        todo = 'Set teachers.output = "logits".'
    elif decimals and off[wrong].max() < ROUGHLY:
        todo = f"They have {decimals} decimals. Write {PRECISE}, or let each row sum to 1. {remedy(member, SHARED)}"
    elif wrong.mean() > 0.5:
        between = "" if beyond.any() else "All lie between 0 and 1: sigmoids, one a class. "
        todo = f"{between}Let each row sum to 1. {remedy(member, SHARED)}"
    else:
        todo = "Fix what it says of that row, or remove the row from the data."
    raise EdistillError(
        f"Member {member.name} is said to return probabilities, but at row {rows[at]} of {split} the least is "
        f"{values[at].min():.4f} and they sum to {values[at].sum():.4f}. {todo}"
    )


def outside(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows (B, K) have a number that no rounding makes of a probability."""
    found: NDArray[np.bool_] = (values.min(axis=1) < -WITHIN) | (values.max(axis=1) > 1 + WITHIN)
    return found


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
    if member.output != "logits" or not sure or _are_shares(values):  # see `checked`
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
        member, SHARED, logits
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
