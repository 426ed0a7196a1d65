"""A user's own method, for tests: Hydra's first phase alone, so its student has one head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from ensemble_distill.methods.method import Batch, Method, Stage, Step
from ensemble_distill.predictive.protocol import Predictive

SPEC = f"{Path(__file__).resolve()}:OneHead"


class OneHead(Method):
    title = "one head"
    paper = "none"
    outputs = "one distribution"

    def heads(self, members: int) -> int:
        return 1

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            return batch.teacher.pooled().kl(student).mean()

        return (Stage("only", 1.0, lambda student: student, loss),)
