"""What an exported student says of rows, by the names of its outputs."""

from __future__ import annotations

from torch import Tensor

from ensemble_distill.predictive.protocol import Predictive


def named_outputs(predictive: Predictive) -> dict[str, Tensor]:
    """Distributions of rows in the order of the file: what their family emits, then the uncertainties, each (B,). What
    a single head does not have is absent."""
    summary = predictive.summary()
    uncertainties = {"total_uncertainty": summary.total, "data_uncertainty": summary.data}
    if predictive.has_model_uncertainty:
        uncertainties["model_uncertainty"] = summary.model
    return {**predictive.emitted(summary), **uncertainties}
