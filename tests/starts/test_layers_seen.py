"""What compression sees of a layer: its inputs at every position, some of them, and how they vary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.testing import assert_close

from ensemble_distill.starts import compress
from ensemble_distill.starts.layers_seen import _Covariance, look, patches_of, some_of
from ensemble_distill.students.factored import by_position


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": (2, 3)},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
        {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": (3, 1), "padding": "same"},
    ],
    ids=str,
)
def test_a_convolution_is_a_product_with_its_patches(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, **how), torch.randn(2, 3, 7, 6)
    with torch.no_grad():
        found = patches_of(layer, x) @ layer.weight.flatten(1).T + layer.bias
        assert_close(found, by_position(layer(x), layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batches", "wanted"), [(1, 6 * 6 * 4), (2**11, 30)])
def test_patches_a_few_rows_at_a_time_go_with_their_outputs(
    monkeypatch: pytest.MonkeyPatch, batches: int, wanted: int
) -> None:
    """All positions or, of one batch of many, the `POSITIONS` ÷ 2¹¹ = 32 that are its own, shared out to its rows."""
    torch.manual_seed(0)
    monkeypatch.setattr(compress, "AT_ONCE", 1000)
    layer, x = nn.Conv2d(3, 5, (2, 3)), torch.randn(6, 3, 7, 6)
    with torch.no_grad():
        parts = list(compress._columns(layer, x, layer(x), batches))
        assert len(parts) == 3, "two rows each"
        assert sum(len(columns) for columns, _ in parts) == wanted
        for columns, outputs in parts:
            assert_close(columns @ layer.weight.flatten(1).T + layer.bias, outputs, rtol=1e-5, atol=1e-5)


def test_some_positions_are_the_same_of_inputs_and_outputs() -> None:
    inputs = torch.arange(1000.0).unsqueeze(1)
    outputs = torch.cat([inputs, -inputs], 1)
    some = some_of(inputs, 300)
    assert len(set(some.flatten().tolist())) == 300
    assert torch.equal(some_of(outputs, 300), torch.cat([some, -some], 1))
    assert some_of(inputs, 1000) is inputs


def test_variances_are_those_of_all_batches_together() -> None:
    drawn = np.random.default_rng(0)
    batches = [
        drawn.normal(level, (1, 2, 3), (rows, 3)) @ drawn.normal(size=(3, 3)) for level, rows in ((0, 40), (50, 9))
    ]
    seen = _Covariance()
    for x in batches:
        seen.add(torch.tensor(x, dtype=torch.float64))
    values, vectors = seen.spectrum()
    wanted = np.cov(np.concatenate(batches).T, bias=True)
    assert (values.diff() <= 0).all()
    assert_allclose(vectors * values @ vectors.T, wanted, rtol=1e-6, atol=1e-6 * wanted.max())


class Selecting(nn.Module):
    """Runs a layer on the rows that begin with a number above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.some = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.all(x)
        here = x[:, 0] > 0
        made[here] += self.some(x[here])
        return made


def test_a_layer_that_runs_on_selected_rows_stays_whole() -> None:
    x = torch.randn(9, 4).abs()
    with torch.no_grad():
        assert look(Selecting(), [x]).keys() == {"all", "some"}
        x[5:, 0] *= -1
        assert look(Selecting(), [x]).keys() == {"all"}
