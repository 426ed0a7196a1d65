"""How exactly members are moved apart: what they predict together stays, and float32 loses nothing of it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.bernoulli import Bernoulli
from ensemble_distill.predictive.categorical import Categorical

BY_LOGITS = pytest.mark.parametrize("distribution", [Categorical, Bernoulli])


def members(rows: int, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that all members share, (rows, 1, 4), and what each adds to them, (rows, 4, 4)."""
    drawn = torch.randn(rows, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 2 * drawn[:, :1], apart * drawn[:, 1:]


@BY_LOGITS
def test_a_spread_of_2_moves_what_agreeing_members_predict_by_a_thousandth_of_a_nat_at_most(
    distribution: type[Categorical | Bernoulli],
) -> None:
    shared, own = members(200, 0.5)
    said = distribution(shared + own)
    moved = said.calibrated(Calibration(spread=2.0))
    assert said.pooled().kl(moved.pooled()).max() < 1e-3
    assert (moved.summary().model > 2 * said.summary().model).double().mean() > 0.9


@BY_LOGITS
def test_a_power_moves_nearly_certain_rows_of_float32_as_those_of_float64(
    distribution: type[Categorical | Bernoulli],
) -> None:
    """Their uncertainties are differences that float32 cannot hold."""
    _, own = members(50, 0.3)
    certain = torch.linspace(2, 25, 50, dtype=torch.float64).view(50, 1, 1) * torch.tensor([1.0, -1, -1, -1])
    half = (certain + own).float()
    found, wanted = (distribution(z).calibrated(Calibration(power=0.5)).logits.double() for z in (half, half.double()))
    middle = [each - each.mean(-1, keepdim=True) for each in (found, wanted)]
    assert_close(*middle, atol=1e-3, rtol=1e-4)
