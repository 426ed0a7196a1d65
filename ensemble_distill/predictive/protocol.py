"""What every family of distributions offers, so that methods and metrics are written once.

B batch, M members or heads, L positions of a row, where it has any, K classes or labels, D targets. Batch first,
always.
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
        mean: the pooled prediction: probabilities (B, *L, K); of regression the expectation, (B, *L), or (B, *L, D) of
            several targets.
        total, data, model: (B, *L); total = data + model, and none is below 0. Nats for classes and labels. Of
            regression variances in the target's unit squared; of several targets their mean, each in squares of its
            own standard deviation.
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
    def weights(self) -> Tensor | None: ...  # (M,), or (B, M) with 0 where one does not answer; None for equal ones
    @property
    def pool(self) -> type[Pool]: ...  # how some of its members are added up
    @property
    def has_model_uncertainty(self) -> bool: ...  # a single distribution has none, which is not the same as 0

    def tempered(self, temperature: float) -> Self: ...  # p^(1/temperature), normalized; temperature above 0
    def calibrated(self, by: Calibration) -> Self: ...  # spread and temperature corrected, the pooled mean kept
    def mixture(self) -> Predictive: ...  # the members' mixture or, where the family has none, its moments; M = 1
    def pooled(self) -> Predictive: ...  # the prediction made of them: the mixture, or as `Average` says; M = 1
    def kl(self, student: Self) -> Tensor: ...  # KL(self ‖ student), (B, M, *L); an M of 1 is spread over the other's
    def deviation_error(self, student: Self) -> Tensor: ...  # how far members depart otherwise, nats, (B, M, *L)
    def nll(self, y: Tensor) -> Tensor: ...  # −ln p_m(y), (B, M, *L)
    def pooled_nll(self, y: Tensor) -> Tensor: ...  # −ln p(y) of the prediction (of regression the mixture), (B, *L)
    def means(self) -> Tensor: ...  # expectations, (B, M, *L, K): probabilities; K = 1 or D of regression
    def member_mean(self, values: Tensor) -> Tensor: ...  # (B, M, ...) to (B, ...), by the members' weights
    def summary(self) -> Summary: ...
    def log_width(self) -> Tensor | None: ...  # ln of its own mean variance, (B,); None where a temperature widens it
    def as_member(self) -> Tensor: ...  # the prediction made of them in the numbers that one member says, (B, W)
    def parts(self, share: Tensor, y: Tensor | None) -> Parts:
        """What sub-ensembles predict; no L.

        Args:
            share: (S, M), or (B, S, M) of each row, how much each member counts, in sums of 1; 0 for who is no part.
            y: the right answers, where there are any.
        """
        ...

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """What an exported student says of B rows, by name, but for its uncertainties; no L."""
        ...


class Family(Protocol):
    """What the numbers that a head emits mean. A frozen dataclass that travels into `config.json`.

    A module of this package whose `FAMILY` is such a class is a family; the file's name is its key.
    """

    @property
    def stands_for_all(self) -> bool: ...  # whether one head stands for all members, and there are no others
    def width(self, classes: int) -> int: ...  # how many numbers a head emits; `classes`: how many names the task has
    def predictive(self, raw: Tensor, weights: Tensor | None, average: Average) -> Predictive:
        """Raw outputs (B, M, *L, width) as distributions; weights (M,) or (B, M), or None for equal ones."""
        ...

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Numbers (B, M, *L, width) that mean what `Predictive.emitted` told of distributions, in the members' unit."""
        ...

    def raw(self, predictive: Any) -> Tensor:
        """Numbers (B, M, *L, width) that mean these distributions: of those that do, the ones that sum to 0 where a
        constant changes nothing."""
        ...
