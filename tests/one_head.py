"""A user's own method, for tests: Hydra's first phase alone, so its student has one head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ensemble_distill.methods.method import Batch, Options, Stage, Step
from ensemble_distill.predictive.protocol import Predictive

SPEC = f"{Path(__file__).resolve()}:OneHead"


class OneHead:
    title = "one head"
    paper = "none"
    outputs = "one distribution"
    needs = frozenset({"teacher"})
    Options: ClassVar[Any] = Options

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: Any, members: int) -> tuple[Stage, ...]:
        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            return batch.teacher.pooled().kl(student).mean()

        return (Stage("only", 1.0, lambda student: student, loss),)
