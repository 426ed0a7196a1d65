"""How far a calibration moves the members of each row apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.protocol import Summary

FAINT = 1e-4  # of the total uncertainty: where members differ less, rounding says how much


def moves(by: Calibration) -> bool:
    """Whether members move at all."""
    return by.spread != 1 or by.power != 0


def exact(x: Tensor) -> Tensor:
    """In double precision: of rows that are all but sure, uncertainties are small differences, and who computes them in
    float32 otherwise has other ones. Apple's GPUs have none."""
    return x if x.device.type == "mps" else x.double()


def row_spreads(by: Calibration, summary: Callable[[], Summary], like: Tensor) -> Tensor | float:
    """What the deviations of members (B, M, *L, ...) are multiplied by, (B, 1, *L, ...): spread × (total ÷ model)^power
    of each row's own uncertainties (B, *L).

    Args:
        summary: tells these, `exact`; not asked where all rows have the same factor, which is then one number.
        like: the deviations, whose dimensions and type the factors have.
    """
    if by.power == 0:
        return by.spread
    here = summary()
    total = here.total.clamp_min(torch.finfo(here.total.dtype).tiny)
    factors = (by.spread * (total / torch.maximum(here.model, FAINT * total)) ** by.power).unsqueeze(1)
    while factors.dim() < like.dim():
        factors = factors.unsqueeze(-1)
    return factors.to(like)
