"""The Hydra module: one body, one head per member."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Average
from ensemble_distill.students.heads import Heads


class Student(nn.Module):
    """x (B, ...) to each head's logits (B, H, K).

    Attributes:
        body: x to features (B, F).
        heads: features to logits.
        weights: (M,) how one head per member pools, as the members do; None for equal. Heads that are not the
            members' (a first stage's single one) pool equally.
        average: "probabilities" or "logits"; see `Categorical`.
    """

    weights: Tensor | None

    def __init__(
        self, body: nn.Module, heads: Heads, weights: Tensor | None = None, average: Average = "probabilities"
    ) -> None:
        super().__init__()
        self.body = body
        self.heads = heads
        self.average: Average = average
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.body(x))
        return logits

    def predictive(self, raw: Tensor) -> Categorical:
        """What raw outputs (B, H, K) mean."""
        weights = self.weights if self.weights is not None and len(self.weights) == raw.shape[1] else None
        return Categorical(raw, weights, self.average)

    def with_heads(self, count: int) -> Self:
        """The same body (shared, not copied) under `count` copies of head 0."""
        student = type(self)(self.body, self.heads.copied(count), self.weights, self.average)
        return student.to(next(self.heads.parameters()).device).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizer factory leaves undecayed, beside every bias: the body's own wishes."""
        inner: set[str] = getattr(self.body, "no_weight_decay", set)()
        return {f"body.{name}" for name in inner}
