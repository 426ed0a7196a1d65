"""The named outputs of an exported student."""

from __future__ import annotations

from torch import Tensor

from ensemble_distill.predictive.protocol import Predictive


def named_outputs(predictive: Predictive) -> dict[str, Tensor]:
    """The outputs in the order of an exported file: those of the family, then the uncertainties (B,).

    `model_uncertainty` is absent if the predictive has none.
    """
    summary = predictive.summary()
    uncertainties = {"total_uncertainty": summary.total, "data_uncertainty": summary.data}
    if predictive.has_model_uncertainty:
        uncertainties["model_uncertainty"] = summary.model
    return {**predictive.emitted(summary), **uncertainties}
