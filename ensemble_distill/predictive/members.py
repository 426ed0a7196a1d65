"""What several distributions of one row have in common, a distribution a member."""

from __future__ import annotations

from torch import Tensor

from ensemble_distill.predictive.weighted import weighted_mean


class Members:
    """A base: who has `members` and `weights` has these; see `Predictive`."""

    weights: Tensor | None

    @property
    def members(self) -> int:
        raise NotImplementedError

    @property
    def has_model_uncertainty(self) -> bool:
        return self.members > 1

    def member_mean(self, values: Tensor) -> Tensor:
        """The members' weighted mean of values (B, M, ...), over dimension 1."""
        return weighted_mean(self.weights, values)
