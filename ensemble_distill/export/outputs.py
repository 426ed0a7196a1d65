"""What an exported student says of a row, by name; the names are what users of the file rely on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Predictive

LOGITS = 1e-4  # logits, and variances relative to themselves, which is their logarithm's difference
UNCERTAINTY = 1e-5  # nats
MEANS = 1e-4  # standard deviations of the prediction


def named_outputs(predictive: Predictive) -> dict[str, Tensor]:
    """The outputs of B rows, in the order of the file.

    Classes: `logits` (B, K) of the pooled prediction and `head_logits` (B, M, K), or of a Dirichlet `concentration`
    (B, K). Numbers: `mean`, `variance` (B,) of the mixture, and `head_means`, `head_variances` (B, M). Then
    `total_uncertainty`, `data_uncertainty` and `model_uncertainty` (B,). What a single head does not have is absent.
    """
    summary = predictive.summary()
    outputs: dict[str, Tensor] = {}
    if isinstance(predictive, Gaussian):
        outputs |= {"mean": summary.mean, "variance": summary.total}
        if predictive.members > 1:
            outputs |= {"head_means": predictive.mean, "head_variances": predictive.log_variance.exp()}
    else:
        pooled = predictive.pooled()
        assert isinstance(pooled, Categorical)
        outputs["logits"] = pooled.logits.squeeze(1)
        if isinstance(predictive, Dirichlet):
            outputs["concentration"] = predictive.concentration.squeeze(1)
        elif isinstance(predictive, Categorical) and predictive.members > 1:
            outputs["head_logits"] = predictive.logits
    outputs |= {"total_uncertainty": summary.total, "data_uncertainty": summary.data}
    if predictive.has_model_uncertainty:
        outputs["model_uncertainty"] = summary.model
    return outputs


def allowed(name: str, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.floating[Any]] | float:
    """By how much an output may differ between two runtimes, for outputs of the same rows.

    Numbers carry the target's unit, so their limits are relative to the prediction's own spread.
    """
    if "mean" not in outputs:
        if name == "concentration":
            return LOGITS * outputs[name]
        return LOGITS if "logits" in name else UNCERTAINTY
    variance = outputs["variance"]
    if name in ("mean", "head_means"):
        # far from 0 a float32 is not finer than this
        floor = 4 * np.finfo(np.float32).eps * np.abs(outputs[name])
        spread = np.sqrt(variance) if name == "mean" else np.sqrt(variance)[:, None]
        limit: NDArray[np.floating[Any]] = MEANS * spread + floor
        return limit
    if name == "head_variances":
        return LOGITS * outputs[name]
    return LOGITS * variance
