"""Checks of classifiers' outputs, and their conversion to logits in the data's class order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.remedies import remedy

OF_LOGIT = "out * out.new_tensor([0, 1])"  # two logits (0, z) from a single one
OF_SHARE = "out * out.new_tensor([-1, 1]) + out.new_tensor([1, 0])"  # two probabilities (1 - p, p) from a single one
SHARED = "out / out.sum(-1, keepdim=True)"
SUSPICIOUS = 8  # rows that must all look like probabilities
WITHIN = 1e-3  # how far beyond 0 and 1 rounding may push a probability
BFLOAT, DECIMALS = 4e-3, 5e-4  # how far rounding moves a row's sum: in bfloat16, and per class with three decimals
APART = 0.02  # how far a row's sum may lie from 1
MANY, ROUGHLY = 100, 0.3  # with at least this many classes, sums this near to 1 come from a softmax, however rounded
PRECISE = 6  # decimals that suffice for any number of classes
FLOOR = 1e-7  # members' probabilities are raised to this before the logarithm


def joined(
    raw: Any, rows: int, member: Member, wanted: str = "a classifier returns (rows, classes)", of_one: str = ""
) -> Tensor:
    """The output as one tensor (B, K). Raises EdistillError if it is not one.

    Args:
        raw: the member's output.
        rows: B.
        member: the member.
        wanted: the required output in words.
        of_one: an expression that makes it from a single number per row; by default two classes, see `_of_one`.
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
        EdistillError: an output is NaN or infinite, or the outputs are not what `teachers.output` says.
    """
    refuse_not_finite(values, member, split, rows)
    if values.shape[1] == 1:
        raise EdistillError(
            f"Member {member.name} returns 1 number a row, and a classifier has one per class, two at least: "
            f"{_of_one(values, member, 'out')}"
        )
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
    """How far the sum of each row of (B, K) lies from 1."""
    off: NDArray[np.float32] = np.abs(values.sum(axis=1) - 1)
    return off


def _rounding(classes: int) -> float:
    """How far the sum of rounded probabilities may lie from 1; the softmax of their logarithms restores it."""
    return min(BFLOAT + DECIMALS * classes, APART)


def _are_shares(values: NDArray[np.float32]) -> bool:
    """Whether (B, K) has enough rows, and all plainly come from a softmax, possibly rounded."""
    classes = values.shape[1]
    limit = ROUGHLY if classes >= MANY else _rounding(classes)
    return len(values) >= SUSPICIOUS and bool(values.min() >= 0 and _off(values).max() <= limit)


def _refuse_no_shares(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError if declared probabilities (B, K) are not probabilities."""
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
    """Whether each row of (B, K) has a number that is no probability, even a rounded one, (B,)."""
    found: NDArray[np.bool_] = (values.min(axis=1) < -WITHIN) | (values.max(axis=1) > 1 + WITHIN)
    return found


def in_data_order(values: NDArray[np.float32], member: Member) -> NDArray[np.float32]:
    """Outputs (B, K) in the data's class order."""
    if member.class_order is None:
        return values
    ordered = np.empty_like(values)
    ordered[:, list(member.class_order)] = values
    return ordered


def as_answers(raw: Tensor, member: Member) -> Tensor:
    """`checked` for raw outputs (B, K), in torch and unchecked."""
    values = raw.float()
    return tensor_in_data_order(values.clamp_min(FLOOR).log() if member.output == "probabilities" else values, member)


def tensor_in_data_order(values: Tensor, member: Member) -> Tensor:
    """`in_data_order` for tensors."""
    return values if member.class_order is None else values[:, np.argsort(member.class_order).tolist()]


def _as_matrix(raw: Any, rows: int, member: Member, of_one: str) -> str:
    """What to do about an output of a wrong shape."""
    if isinstance(raw, Tensor) and raw.dim() != 2 and raw.numel() and len(raw.reshape(-1)) % rows == 0:
        if raw.dim() == 1 and not of_one:
            return _of_one(raw.float().cpu().numpy(), member, "out.unsqueeze(1)")
        return remedy(member, "out.flatten(1)" if raw.dim() > 2 else of_one or "out.unsqueeze(1)")
    return "Let its module do so (teachers.model)."


def _of_one(values: NDArray[np.float32], member: Member, column: str) -> str:
    """What to do about a single number per row: a logit z of class 1 stands for (0, z), a probability p for (1 - p, p).

    Args:
        column: the Python expression of the numbers as (B, 1).
    """
    between = bool(values.min() >= -WITHIN and values.max() <= 1 + WITHIN)
    shares = between and (member.output == "probabilities" or len(values) >= SUSPICIOUS)
    output, pair = (
        ("probabilities", "probability p of class 1 stands for (1 - p, p)")
        if shares
        else ("logits", "logit z of class 1 stands for (0, z)")
    )
    set_it = "" if member.output == output else f' Set teachers.output = "{output}".'
    return f"a single {pair}.{set_it} {remedy(member, (OF_SHARE if shares else OF_LOGIT).replace('out', column, 1))}"


def refuse_sigmoids(values: NDArray[np.float32], member: Member, split: str, rows: Sequence[int]) -> None:
    """Raise EdistillError if declared logits (B, K) of enough rows look like sigmoids.

    They do if all lie between 0 and 1, and most rows have one above a half. A softmax ignores a constant added to all
    logits of a row, so an honest member's logits seldom lie there, except small ones of a network that has hardly
    learned. A user whose logits do can add a constant.
    """
    inside = len(rows) >= SUSPICIOUS and values.shape[1] > 1 and values.min() >= 0 and values.max() <= 1
    sure = inside and np.median(values.max(axis=1)) > 0.5 and values.min() < values.max()
    if member.output != "logits" or not sure or _are_shares(values):  # `checked` refuses those
        return
    raise EdistillError(
        f"Member {member.name} is said to return logits, but at {len(rows)} rows of {split} all lie between "
        f"{values.min():.4f} and {values.max():.4f}, and at row {rows[0]} they sum to {values[0].sum():.4f}: "
        f"{_sigmoids(member)}"
    )


def _sigmoids(member: Member) -> str:
    """What to do about outputs that look like sigmoids; subtracting 1 from all logits of a row changes nothing."""
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
