"""What all families with one distribution per member share."""

from __future__ import annotations

from torch import Tensor

from ensemble_distill.predictive.weighted import weighted_mean


class Members:
    """Base class of predictives that hold one distribution per member; see `Predictive`."""

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
