"""The student: one body under one or more heads, and the meaning of its outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.protocol import Average, Family, Predictive
from ensemble_distill.students.last_stage import HeadStack, LastStageHeads
from ensemble_distill.students.per_head import PerHead
from ensemble_distill.students.positions import at_positions
from ensemble_distill.students.rank_one import RankOne, RankOneBody, RankOneLayer, rank_one_body, rank_one_heads
from ensemble_distill.students.split import undecayed
from ensemble_distill.students.tied import TiedHeads

Form = Literal["heads", "rank-one"]  # how a student holds one prediction per member


class Student(nn.Module):
    """x (B, ...) to the raw outputs of each head, (B, H, W); with positions, ids (B, C + L) to (B, H, L, W).

    Under autocast the body runs in lower precision and the heads in full: heads of one ensemble differ by less than
    bfloat16 resolves.

    Attributes:
        body: x to features: (B, F), or (B, H, F) if every head has rank-one factors in the body. With positions (B, C +
            L, F), or a tuple of these and a state.
        heads: features to W numbers per head.
        family: what those numbers mean.
        weights: (M,), how one head per member is pooled, as the members are; None for equal weights. Heads that do not
            stand for the members, such as a first stage's single one, are pooled equally.
        average: "probabilities" or "logits"; see `Categorical`.
        calibration: the correction of its predictions; None for a student as trained.
        frozen: names of modules that training does not change, statistics included.
        positions: L, the number of positions with an answer; None if a row has one answer.
    """

    weights: Tensor | None

    def __init__(
        self,
        body: nn.Module,
        heads: HeadStack,
        family: Family,
        weights: Tensor | None = None,
        average: Average = "probabilities",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.body = body
        self.heads = heads
        self.family = family
        self.average: Average = average
        self.calibration: Calibration | None = None
        self.frozen: tuple[str, ...] = ()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.features(x))

    def read(self, features: Tensor) -> Tensor:
        """The heads' outputs for features: (B, F) to (B, H, W), or with positions (B, L, F) to (B, H, L, W)."""
        if self.positions is None:
            return self._heads(features)
        each = self._heads(features.flatten(0, 1))  # the heads treat each position as a row
        by_row = torch.unflatten(each, 0, (features.shape[0], features.shape[1]))
        return by_row.transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        features = x
        if not torch.is_autocast_enabled(x.device.type):
            raw: Tensor = self.heads(features)
            return raw
        with torch.autocast(x.device.type, enabled=False):
            raw = self.heads(features.float())
        return raw

    def features(self, x: Tensor) -> Tensor:
        """The body's features of x: (B, F), or (B, H, F); with positions (B, L, F).

        The body gets its own copy of x, since it may work in place.

        Raises:
            EdistillError: the body fails, as it may on other rows than it was tried on.
        """
        try:
            made = self.body(x.clone())
            features: Tensor = made if self.positions is None else at_positions(made, self.positions)
        except Exception as error:  # the body is anyone's code
            mode = "training" if self.body.training else "eval"
            raise EdistillError(
                f"The student's body fails in {mode} mode on {x.shape[0]} rows: {quoted(error)}. "
                "Fix it, or where memory ran out take fewer rows at once."
            ) from error
        return features

    def predictive(self, raw: Tensor) -> Predictive:
        """The distributions that raw outputs (B, H, W) stand for, calibrated if the student is."""
        weights = self.weights if self.weights is not None and len(self.weights) == raw.shape[1] else None
        weights = None if weights is None else weights.clone()  # a method's loss may be anyone's code
        predictive = self.family.predictive(raw, weights, self.average)
        return predictive if self.calibration is None else predictive.calibrated(self.calibration)

    def freeze(self, modules: Iterable[str]) -> None:
        """Freeze modules from now on: their weights are not trained, and they stay in eval mode."""
        self.frozen = tuple(modules)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def with_heads(self, count: int) -> Self:
        """The same body (shared, not copied) under `count` copies of head 0."""
        return self._with(self.body, self.heads.copied(count))

    def with_rank_one(self, count: int, spread: float = 0.0) -> Self:
        """`count` members that share every weight of body and head 0, except for rank-one factors of their own.

        Args:
            spread: initial standard deviation of the factors about 1.

        Raises:
            EdistillError: the body has no linear or convolutional layer, or the heads are last stages or tied.
        """
        if isinstance(self.heads, LastStageHeads):
            raise EdistillError(
                "batch-ensemble gives each member its own factors in the last stage too, and there are "
                "no heads to copy it into. Use student.heads = [] or a list of sizes, or --method hydra."
            )
        if isinstance(self.heads, TiedHeads):
            raise EdistillError("batch-ensemble has no output layer that is tied. Leave student.tied out.")
        body = rank_one_body(copy.deepcopy(self.body), count, spread)
        return self._with(body, rank_one_heads(self.heads, count, spread))

    def formed(self, form: Form, count: int) -> Self:
        """`count` predictions in the given form, whose weights are still to be loaded."""
        return self.with_heads(count) if form == "heads" else self.with_rank_one(count)

    def _with(self, body: nn.Module, heads: HeadStack) -> Self:
        student = type(self)(body, heads, self.family, self.weights, self.average, self.positions)
        if body is self.body:  # new heads are to be trained
            student.frozen = tuple(name for name in self.frozen if name.startswith("body"))
        return student.to(next(self.heads.parameters()).device).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm's optimizer factory should not decay, besides every bias.

        These are the body's own exemptions, the rank-one factors, which belong near 1, and the heads' own vectors, such
        as normalization weights.
        """
        inner = self.body.inner if isinstance(self.body, RankOneBody) else self.body
        prefix = "body.inner" if isinstance(self.body, RankOneBody) else "body"
        wished = undecayed(inner)
        between = (name for name, module in self.named_modules() if isinstance(module, RankOne | RankOneLayer))
        factors = {f"{name}.{factor}" for name in between for factor in ("r", "s")}
        # a vector per head has the shape of a matrix, which timm would decay
        own = {
            f"{name}.{key}"
            for name, module in self.named_modules()
            if isinstance(module, PerHead)
            for key, parameter in module.named_parameters()
            if parameter.dim() == 2
        }
        if isinstance(self.heads, LastStageHeads):
            own |= {f"heads.tail.{name}" for name in undecayed(self.heads.tail)}
        return {f"{prefix}.{name}" for name in wished} | factors | own
