"""Distributions that are held as logits, whatever those are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.members import Members
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.spreads import exact, moves, row_spreads

# Times the pooled prediction is brought back. Of members that mostly agree it is then within 1e-3 nats for spreads of
# up to 2; `calibrate` warns where it is not. Each one costs a served row some microseconds
ANCHORED = 3


@dataclass(frozen=True)
class OfLogits(Members):
    """M distributions for each row; see `Categorical` and `Bernoulli`.

    Attributes:
        logits: (B, M, *L, K).
        weights: (M,), or (B, M) of each row, not negative, taken relative to their sum; None for equal weights.
        average: what pooling means: the mixture ("probabilities") or the mean logits ("logits").
    """

    logits: Tensor
    weights: Tensor | None = None
    average: Average = "probabilities"

    @property
    def members(self) -> int:
        return self.logits.shape[1]

    def scores(self) -> Tensor:
        """The logits of each member as they are compared with another's, (B, M, *L, K)."""
        return self.logits

    def mixture(self) -> OfLogits:
        raise NotImplementedError

    def pooled(self) -> OfLogits:
        raise NotImplementedError

    def summary(self) -> Summary:
        raise NotImplementedError

    def tempered(self, temperature: float) -> Self:
        """The softmax or the sigmoid of logits / temperature; temperature > 0."""
        return self if temperature == 1 else replace(self, logits=self.logits / temperature)

    def calibrated(self, by: Calibration) -> Self:
        """Softened by the temperature; then the members' logits moved apart or together about their mean, by the
        spread, which leaves what they predict together nearly as it was. See `row_spreads`.

        Where they pool by logits, moving about the mean logits keeps it exactly. Where they pool by probabilities,
        three times z_m += z* − the mixture's logits of the moved ones bring the mixture back toward what it was, z*.
        These are steps of Sinkhorn's algorithm: members that are sure of different classes need many more of them.
        """
        soft = self.tempered(by.temperature)
        if self.members == 1 or not moves(by):
            return soft
        scores = soft.scores()
        center = self.member_mean(scores).unsqueeze(1)
        spreads = row_spreads(by, replace(soft, logits=exact(soft.logits)).summary, scores)
        moved = replace(soft, logits=center + spreads * (scores - center))
        if self.average == "logits":
            return moved
        anchor = soft.mixture().logits
        for _ in range(ANCHORED):
            moved = replace(moved, logits=moved.scores() + anchor - moved.mixture().logits)
        return moved

    def log_width(self) -> None:
        """A temperature widens it."""

    def as_member(self) -> Tensor:
        """Logits of the pooled prediction, (B, K)."""
        return self.pooled().logits.squeeze(1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`logits` (B, K) of the pooled probabilities, and `head_logits` (B, M, K) of several members."""
        heads = {"head_logits": self.logits} if self.members > 1 else {}
        return {"logits": self.as_member(), **heads}


@dataclass(frozen=True)
class OfLogitsFamily:
    """A head emits K logits."""

    stands_for_all: ClassVar[bool] = False

    def width(self, classes: int) -> int:
        return classes

    def from_emitted(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["head_logits"] if "head_logits" in outputs else outputs["logits"].unsqueeze(1)
