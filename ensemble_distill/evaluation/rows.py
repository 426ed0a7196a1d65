"""What an evaluation keeps of each row, in float64; every reported figure is a reduction of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.predictive.categorical import Categorical

Rows = dict[str, NDArray[np.float64]]  # each (B,) or, for the members, (B, M)


def prediction_rows(predictive: Categorical, y: Tensor | None) -> Rows:
    """The pooled prediction's quality and the mixture's uncertainty, each (B,).

    Model uncertainty is left out for a single distribution: it does not apply there, and is not 0.
    """
    summary = predictive.summary()
    rows = _quality(predictive.pooled(), y)
    rows = {name: values[:, 0] for name, values in rows.items()}
    rows["total_uncertainty"] = summary.total.numpy()
    rows["data_uncertainty"] = summary.data.numpy()
    if predictive.members > 1:
        rows["model_uncertainty"] = summary.model.numpy()
    return rows


def member_rows(predictive: Categorical, y: Tensor | None) -> Rows:
    """Each member's own quality and entropy, (B, M)."""
    rows = _quality(predictive, y)
    rows["total_uncertainty"] = rows["data_uncertainty"] = predictive.entropy().numpy()
    return rows


def _quality(predictive: Categorical, y: Tensor | None) -> Rows:
    log_probs = predictive.log_probs()
    probs = log_probs.exp()
    confidence, top = probs.max(-1)
    rows = {"prediction": top.double().numpy(), "confidence": confidence.numpy()}
    if y is not None:
        true = torch.nn.functional.one_hot(y, probs.shape[-1]).unsqueeze(1)
        rows["nll"] = predictive.nll(y).numpy()
        rows["correct"] = (top == y.unsqueeze(1)).double().numpy()
        rows["brier"] = (probs - true).square().sum(-1).numpy()
    return rows


def fidelity_rows(ensemble: Categorical, student: Categorical) -> Rows:
    """How near the student is to the ensemble on each row, each (B,); nats.

    `member_kl` and the three deviation sums (see `fidelity`) need one head per member, and are left out otherwise.
    """
    pooled, theirs = ensemble.pooled(), student.pooled()
    mixture = Categorical(ensemble.mixture_log_probs().unsqueeze(1))
    mixture_theirs = Categorical(student.mixture_log_probs().unsqueeze(1))
    rows = {
        "mean_kl": pooled.kl(theirs)[:, 0].numpy(),
        "mixture_kl": mixture.kl(mixture_theirs)[:, 0].numpy(),
        "agreement": (pooled.logits.argmax(-1) == theirs.logits.argmax(-1))[:, 0].double().numpy(),
    }
    if student.members == ensemble.members > 1:
        rows["member_kl"] = ensemble.member_mean(ensemble.kl(student)).numpy()
        p = ensemble.log_probs().exp() - mixture.log_probs().exp()
        q = student.log_probs().exp() - mixture_theirs.log_probs().exp()
        rows["deviation_product"] = (p * q).sum((1, 2)).numpy()
        rows["deviation_ensemble"] = p.square().sum((1, 2)).numpy()
        rows["deviation_student"] = q.square().sum((1, 2)).numpy()
    return rows


def concatenate(parts: Iterable[Rows]) -> Rows:
    """Batches of rows, end to end."""
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}


def prefixed(name: str, rows: Mapping[str, NDArray[np.float64]]) -> Rows:
    return {f"{name}_{key}": values for key, values in rows.items()}
