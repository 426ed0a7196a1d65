"""Thinner layers: their count of weights, what they compute, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.factored import factor, factored, is_factorable, most, weights_of

LAYERS = st.builds(
    lambda kind, inputs, outputs, stride: {
        "linear": lambda: nn.Linear(inputs, outputs),
        "pointwise": lambda: nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        "square": lambda: nn.Conv2d(inputs, outputs, 3, stride, 1),
        "long": lambda: nn.Conv2d(inputs, outputs, (3, 5), stride, (2, 4), dilation=2),
    }[kind](),
    st.sampled_from(("linear", "pointwise", "square", "long")),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 2),
)


@given(LAYERS, st.data())
def test_factors_have_the_shapes_and_the_weights_that_they_are_counted_at(
    layer: nn.Conv2d | nn.Linear, data: st.DataObject
) -> None:
    inner, outer = (data.draw(st.integers(1, limit)) for limit in most(layer))
    ranks = (inner, outer if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) else inner)
    factors = factored(layer, ranks)
    x = torch.randn(2, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 9, 8)
    assert factors(x).shape == layer(x).shape
    weights = sum(p.numel() for name, p in factors.named_parameters() if name.endswith("weight"))
    assert weights_of(layer, ranks) == min(weights, layer.weight.numel())
    assert [name for name, _ in factors.named_parameters() if name.endswith("bias")] == [
        "expand.bias" if hasattr(factors, "expand") else "core.bias"
    ]


def test_three_factors_are_one_convolution_whose_kernel_is_their_product() -> None:
    layer = nn.Conv2d(5, 7, 3, 2, 1)
    factors = factored(layer, (2, 4))
    reduce, core, expand = factors.reduce.weight[..., 0, 0], factors.core.weight, factors.expand.weight[..., 0, 0]
    kernel = torch.einsum("or,rshw,si->oihw", expand, core, reduce)
    x = torch.randn(3, 5, 8, 8)
    assert_close(factors(x), conv2d(x, kernel, factors.expand.bias, 2, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.Conv1d(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4),
        nn.BatchNorm2d(4),
    ],
)
def test_other_layers_are_left_as_they_are(layer: nn.Module) -> None:
    assert not is_factorable(layer)


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ({"1": (1, 1)}, "body's 1, and that is a ReLU"),
        ({"2": (1, 1)}, "body's 2, and that is not there"),
        ({"0": (3, 3)}, r"factors of rank \(3, 3\).*no more than \(2, 2\)"),
        ({"0": (0, 0)}, r"factors of rank \(0, 0\)"),
    ],
)
def test_factors_that_do_not_fit_the_body_are_refused(ranks: dict[str, tuple[int, int]], told: str) -> None:
    with pytest.raises(EdistillError, match=told + r".*Put back the body"):
        factor(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), ranks)
