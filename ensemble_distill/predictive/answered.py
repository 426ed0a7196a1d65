"""Members that do not answer every row, such as those of out-of-fold outputs.

In outputs, a row that a member does not answer is NaN. In a predictive, that member has weight 0 on that row, so every
mean over members covers only those who answer; its own numbers there are finite and meaningless.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ensemble_distill.predictive.protocol import Predictive

Said = TypeVar("Said", bound=Predictive)


def answered(outputs: Tensor) -> Tensor:
    """Whether each member answers each row, (B, M), from outputs (B, M, ...) that are NaN where it does not."""
    return ~outputs.isnan().flatten(2).all(-1)


def those_who_answer(outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Finite outputs (B, M, ...) and the members' weights on each row, (B, M).

    Where a member does not answer a row, its weight is 0 and its outputs are the mean of the other members'.

    Args:
        outputs: (B, M, ...), NaN where a member does not answer.
        weights: (M,), the members' weights; None for equal weights.
    """
    there = answered(outputs)
    shaped = there.view(*there.shape, *[1] * (outputs.dim() - 2))
    known = torch.where(shaped, outputs, 0.0)
    others = known.sum(1, keepdim=True) / shaped.sum(1, keepdim=True).clamp_min(1)
    own = outputs.new_ones(outputs.shape[1]) if weights is None else weights.to(outputs)
    return torch.where(shaped, outputs, others), own * there


def who_answers(predictive: Any) -> Tensor | None:
    """Whether each member of a predictive answers each row, (B, M); None if all members answer every row."""
    weights: Tensor | None = predictive.weights
    return None if weights is None or weights.dim() == 1 else weights > 0


def answering(predictive: Any) -> Tensor | None:
    """How many members of a predictive answer each row, (B,); None if all members answer every row."""
    there = who_answers(predictive)
    return None if there is None else there.sum(1)


def matched(student: Said, ensemble: Any) -> Said:
    """The student with only those heads counted on each row whose members answer it.

    A student that equals the ensemble then has no error. The student is returned unchanged if all members answer every
    row, or if it does not have one head for each of several members.
    """
    if answering(ensemble) is None or student.members != ensemble.members or student.members == 1:
        return student
    own: Any = student
    return cast("Said", replace(own, weights=ensemble.weights))
