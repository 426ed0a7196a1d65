"""What every family of distributions offers, so that methods and metrics are written once.

Shapes: B batch, M members or heads, *L a row's positions, if any, K classes or labels, D targets. Batch comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.parts import Parts
from ensemble_distill.predictive.pools import Pool

Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Summary:
    """A pooled prediction and where its uncertainty comes from.

    Attributes:
        mean: the pooled prediction. For classes and labels, probabilities (B, *L, K); for regression, the expectation
            (B, *L), or (B, *L, D) with several targets.
        total, data, model: uncertainties (B, *L), nonnegative, with total = data + model. For classes and labels, nats.
            For regression, variances in the target's unit squared; with several targets, their mean, each variance in
            squares of its target's standard deviation.
    """

    mean: Tensor
    total: Tensor
    data: Tensor
    model: Tensor


class Predictive(Protocol):
    """A batch of distributions, one per member."""

    @property
    def members(self) -> int: ...
    @property
    def weights(self) -> Tensor | None: ...  # (M,), or (B, M) with 0 where a member does not answer; None for equal
    @property
    def pool(self) -> type[Pool]: ...  # how a choice of its members adds up
    @property
    def has_model_uncertainty(self) -> bool: ...  # a single distribution has none, which differs from 0

    def tempered(self, temperature: float) -> Self: ...  # p^(1/temperature), normalized; temperature above 0
    def calibrated(self, by: Calibration) -> Self: ...  # temperature or variance corrected, then the spread
    def mixture(self) -> Predictive: ...  # the members' mixture, or the family's distribution with its moments; M = 1
    def pooled(self) -> Predictive: ...  # the pooled prediction: the mixture, or as `Average` says; M = 1
    def kl(self, student: Self) -> Tensor: ...  # KL(self ‖ student), nats, (B, M, *L); M = 1 broadcasts
    def deviation_error(self, student: Self) -> Tensor: ...  # how members' deviations differ, nats, (B, M, *L)
    def nll(self, y: Tensor) -> Tensor: ...  # −ln p_m(y), (B, M, *L)
    def pooled_nll(self, y: Tensor) -> Tensor: ...  # −ln p(y), pooled (for regression, the mixture), (B, *L)
    def means(self) -> Tensor: ...  # expectations (B, M, *L, K): probabilities, or targets with K = 1 or D
    def member_mean(self, values: Tensor) -> Tensor: ...  # the weighted mean over members, (B, M, ...) to (B, ...)
    def summary(self) -> Summary: ...
    def log_width(self) -> Tensor | None: ...  # ln of the mean variance, (B,); None if a temperature widens instead
    def as_member(self) -> Tensor: ...  # the pooled prediction in the numbers that one member emits, (B, W)
    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        """What S sub-ensembles predict, for rows without positions.

        Args:
            share: (S, M), or (B, S, M) to differ by row: each member's share in a sub-ensemble, 0 for members outside
                it. The shares of a sub-ensemble sum to 1.
            y: the right answers; None if there are none.
        """
        ...

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """The named outputs of an exported student, without uncertainties, for B rows without positions."""
        ...


class Family(Protocol):
    """What the numbers that a head emits mean: a frozen dataclass that is written to `config.json`.

    A module of this package defines a family by naming its class `FAMILY`; the file's name is the family's key.
    """

    @property
    def stands_for_all(self) -> bool: ...  # whether a single head stands for all members
    def width(self, classes: int) -> int: ...  # how many numbers a head emits, for a task with `classes` names
    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Predictive:
        """Distributions from raw outputs (B, M, *L, width) and weights (M,) or (B, M); None for equal weights."""
        ...

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Raw numbers (B, M, *L, width) from the named outputs of `Predictive.emitted`, in the members' unit."""
        ...

    def raw(self, predictive: Any) -> Tensor:
        """Raw numbers (B, M, *L, width) of distributions: the inverse of `predictive`.

        Where adding a constant changes nothing, the numbers sum to 0.
        """
        ...
