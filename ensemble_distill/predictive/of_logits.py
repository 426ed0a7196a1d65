"""What the families that hold logits share: classes and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.members import Members
from ensemble_distill.predictive.protocol import Average, Summary
from ensemble_distill.predictive.spreads import exact, moves, row_spreads

# How often the pooled prediction is brought back. If members mostly agree, it is then within 1e-3 nats for spreads up
# to 2; `calibrate` warns where it is not. Each time costs a served row some microseconds
ANCHORED = 3


@dataclass(frozen=True)
class OfLogits(Members):
    """M distributions for each row; see `Categorical` and `Bernoulli`.

    Attributes:
        logits: (B, M, *L, K).
        weights: (M,), or (B, M) to weight each row differently; nonnegative, relative to their sum; None for equal.
        average: how members are pooled: as their mixture ("probabilities") or by their mean logits ("logits").
    """

    logits: Tensor
    weights: Tensor | None = None
    average: Average = "probabilities"

    @property
    def members(self) -> int:
        return self.logits.shape[1]

    def scores(self) -> Tensor:
        """The logits of each member in a form comparable between members, (B, M, *L, K)."""
        return self.logits

    def mixture(self) -> OfLogits:
        raise NotImplementedError

    def pooled(self) -> OfLogits:
        raise NotImplementedError

    def summary(self) -> Summary:
        raise NotImplementedError

    def tempered(self, temperature: float) -> Self:
        """The distributions with logits divided by the temperature, which is above 0."""
        return self if temperature == 1 else replace(self, logits=self.logits / temperature)

    def calibrated(self, by: Calibration) -> Self:
        """The members' logits softened by the temperature, then moved apart or together about their mean.

        See `row_spreads` for how far they move. The pooled prediction stays nearly as it was. If members pool by
        logits, it stays exactly. If they pool by probabilities, the step z_m += z* − z̄ is taken `ANCHORED` times, where
        z* are the mixture's logits before the move and z̄ those of the members moved so far. These are steps of
        Sinkhorn's algorithm; members that are sure of different classes would need many more of them.
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
        """None, since a temperature widens the prediction."""

    def as_member(self) -> Tensor:
        """The pooled prediction's logits, (B, K)."""
        return self.pooled().logits.squeeze(1)

    def emitted(self, summary: Summary) -> dict[str, Tensor]:
        """`logits` (B, K) of the pooled prediction and, if M > 1, `head_logits` (B, M, K) of the members."""
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
