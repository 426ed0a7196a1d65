"""What every family of distributions offers, so that methods and metrics are written once.

B batch, M members or heads, L positions (none for classifiers), K classes. Batch first, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

from torch import Tensor

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Summary:
    """A pooled prediction and where its uncertainty comes from.

    Attributes:
        mean: the pooled prediction, (B, *L, K) probabilities.
        total, data, model: (B, *L); nats for classes, with total = data + model and none below 0.
    """

    mean: Tensor
    total: Tensor
    data: Tensor
    model: Tensor


class Predictive(Protocol):
    """A batch of distributions, one per member."""

    @property
    def members(self) -> int: ...

    def tempered(self, temperature: float) -> Self: ...  # softened by a temperature above 0
    def pooled(self) -> Self: ...  # the ensemble's prediction, M = 1
    def kl(self, student: Self) -> Tensor: ...  # KL(self ‖ student), (B, M, *L)
    def nll(self, y: Tensor) -> Tensor: ...  # −ln p_m(y), (B, M, *L)
    def member_mean(self, values: Tensor) -> Tensor: ...  # (B, M, *L) to (B, *L), by the members' weights
    def summary(self) -> Summary: ...
