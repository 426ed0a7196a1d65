"""Several bodies as one: their features are concatenated, so that heads read all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ensemble_distill.students.split import undecayed


class SideBySide(nn.Module):
    """x (B, ...) to features (B, F_1 + … + F_k) of k bodies that share nothing.

    Started from k members, under heads in closed form, it is the ensemble of these k and an estimate of the others;
    training everything on every member then improves that estimate.
    """

    def __init__(self, bodies: Iterable[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        *others, last = self.bodies
        # a copy each: a body may change its input in place
        return torch.cat([*(body(x.clone()) for body in others), last(x)], dim=1)

    def no_weight_decay(self) -> set[str]:
        """The names that the bodies exempt; see `Student.no_weight_decay`."""
        return {f"bodies.{index}.{name}" for index, body in enumerate(self.bodies) for name in undecayed(body)}
