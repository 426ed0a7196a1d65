"""How far a calibration moves the members apart on each row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.protocol import Summary

FAINT = 1e-4  # share of the total uncertainty below which the members' differences are rounding


def moves(by: Calibration) -> bool:
    """Whether a calibration moves the members at all."""
    return by.spread != 1 or by.power != 0


def exact(x: Tensor) -> Tensor:
    """A tensor in float64, except on Apple's GPUs, which have no float64.

    The uncertainties of nearly certain rows are small differences, which in float32 depend on the order of operations.
    """
    return x if x.device.type == "mps" else x.double()


def row_spreads(by: Calibration, summary: Callable[[], Summary], like: Tensor) -> Tensor | float:
    """The factor of each row's deviations: spread × (total ÷ model)^power of the row's own uncertainties.

    Args:
        by: the calibration.
        summary: computes the uncertainties (B, *L) from `exact` numbers; not called if `by.power` is 0.
        like: the deviations, (B, M, *L, ...), whose dtype and number of dimensions the factors take.

    Returns:
        (B, 1, *L, ...), or a single number if all rows share one factor.
    """
    if by.power == 0:
        return by.spread
    here = summary()
    total = here.total.clamp_min(torch.finfo(here.total.dtype).tiny)
    factors = (by.spread * (total / torch.maximum(here.model, FAINT * total)) ** by.power).unsqueeze(1)
    while factors.dim() < like.dim():
        factors = factors.unsqueeze(-1)
    return factors.to(like)
