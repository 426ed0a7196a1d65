"""Thinner layers: their count of weights, what they compute, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.students.canonical import decompose, product
from ensemble_distill.students.factored import (
    channels,
    factor,
    factors_of,
    highest_rank,
    is_factorable,
    parameters_of,
    positions,
)

LAYERS = st.builds(
    lambda kind, inputs, outputs, stride: {
        "linear": lambda: nn.Linear(inputs, outputs),
        "pointwise": lambda: nn.Conv2d(inputs, outputs, 1, stride, bias=False),
        "square": lambda: nn.Conv2d(inputs, outputs, 3, stride, 1),
        "long": lambda: nn.Conv2d(inputs, outputs, (3, 5), stride, (2, 4), dilation=2),
        "same": lambda: nn.Conv2d(inputs, outputs, (3, 2), padding="same", dilation=2),
        "valid": lambda: nn.Conv2d(inputs, outputs, 2, stride, padding="valid"),
    }[kind](),
    st.sampled_from(("linear", "pointwise", "square", "long", "same", "valid")),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 2),
)


@given(LAYERS, st.integers(1, 40))
def test_factors_have_the_shapes_and_the_parameters_that_they_are_counted_at(
    layer: nn.Conv2d | nn.Linear, rank: int
) -> None:
    assert is_factorable(layer)
    factors = factors_of(layer, rank)
    x = torch.randn(2, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 9, 8)
    assert factors(x).shape == layer(x).shape
    assert parameters_of(layer, rank) == sum(p.numel() for p in factors.parameters())
    assert parameters_of(layer) == sum(p.numel() for p in layer.parameters())
    assert [name for name, _ in factors.named_parameters() if name.endswith("bias")] == ["expand.bias"]


@pytest.mark.thorough
@given(LAYERS)
@settings(deadline=None, max_examples=10)
def test_the_highest_rank_is_enough_for_the_layer_itself(layer: nn.Conv2d | nn.Linear) -> None:
    weight = layer.weight.detach().double().reshape(*reversed(channels(layer)), -1)  # (out, in, positions)
    rank = highest_rank(layer)
    found = product(*decompose(weight, rank, 400))
    assert (found - weight).square().sum() < 1e-3 * weight.square().sum()
    # and one of the three sides has no more than two of them make
    sides = sorted(weight.shape)
    assert rank == (sides[1] if positions(layer) == 1 else sides[0] * sides[1])


def test_three_factors_are_one_convolution_whose_kernel_is_their_product() -> None:
    layer = nn.Conv2d(5, 7, (3, 5), 2, 1, dilation=(2, 1))
    factors = factors_of(layer, 4)
    reduce, core, expand = (getattr(factors, name).weight.flatten(1) for name in ("reduce", "core", "expand"))
    kernel = product(expand, reduce.T, core.T).unflatten(2, (3, 5))
    x = torch.randn(3, 5, 9, 8)
    assert_close(factors(x), conv2d(x, kernel, factors.expand.bias, 2, 1, (2, 1)), atol=1e-5, rtol=1e-5)


def patched() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def hooked() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.register_full_backward_hook(lambda *_: None)
    return layer


def test_what_is_frozen_stays_so() -> None:
    layer = nn.Linear(4, 4)
    for weight, bias in ((True, False), (False, True)):
        layer.weight.requires_grad_(weight)
        layer.bias.requires_grad_(bias)
        trained = {name: p.requires_grad for name, p in factors_of(layer, 2).named_parameters()}
        assert trained == {"reduce.weight": weight, "expand.weight": weight, "expand.bias": bias}


def test_other_layers_are_left_as_they_are() -> None:
    for layer in [
        patched(),
        hooked(),
        nn.Linear(4, 4, dtype=torch.complex64),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.Conv1d(4, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4),
        nn.BatchNorm2d(4),
    ]:
        assert not is_factorable(layer)


def test_factors_that_do_not_fit_the_body_are_refused() -> None:
    for ranks, told in [
        ({"1": 1}, "body's '1', and that is a ReLU"),
        ({"2": 1}, "body's '2', and that is not there"),
        ({"": 1}, "body's '', and that is not there"),
        ({"0": 3}, "factors of rank 3.*a layer of 4 to 2 channels has none such"),
        ({"0": 0}, "factors of rank 0"),
    ]:
        with pytest.raises(EdistillError, match=told + r".*Put back the body"):
            factor(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), ranks)
