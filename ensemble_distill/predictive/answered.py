"""Members that do not answer every row, as those of out-of-fold outputs: which do, and who is compared with them.

In outputs such a row is NaN. In a predictive it has a weight of 0, so that every mean over members is over those who
answer; its own numbers are then finite, and mean nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ensemble_distill.predictive.protocol import Predictive

Said = TypeVar("Said", bound=Predictive)


def answered(outputs: Tensor) -> Tensor:
    """(B, M) whether a member answers a row, from outputs (B, M, ...) that are NaN where it does not."""
    return ~outputs.isnan().flatten(2).all(-1)


def those_who_answer(outputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Finite outputs (B, M, ...), and weights (B, M): 0 for a member on a row that it does not answer, whose numbers
    are the mean of the others'.

    Args:
        outputs: NaN where a member does not answer.
        weights: (M,) of all; None for equal ones.
    """
    there = answered(outputs)
    shaped = there.view(*there.shape, *[1] * (outputs.dim() - 2))
    known = torch.where(shaped, outputs, 0.0)
    others = known.sum(1, keepdim=True) / shaped.sum(1, keepdim=True).clamp_min(1)
    own = outputs.new_ones(outputs.shape[1]) if weights is None else weights.to(outputs)
    return torch.where(shaped, outputs, others), own * there


def who_answers(predictive: Any) -> Tensor | None:
    """(B, M) whether a member of a predictive answers a row; None where all answer every row."""
    weights: Tensor | None = predictive.weights
    return None if weights is None or weights.dim() == 1 else weights > 0


def answering(predictive: Any) -> Tensor | None:
    """(B,) how many members of a predictive answer each row; None where all answer every row."""
    there = who_answers(predictive)
    return None if there is None else there.sum(1)


def matched(student: Said, ensemble: Any) -> Said:
    """Of a student with a head for each member, on each row the heads of those members who answer it: so a student that
    is the ensemble has no error. Any other, and where all members answer, is itself."""
    if answering(ensemble) is None or student.members != ensemble.members or student.members == 1:
        return student
    own: Any = student
    return cast("Said", replace(own, weights=ensemble.weights))
