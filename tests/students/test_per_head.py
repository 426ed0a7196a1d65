"""Layers that every head has its own of, against a loop over networks of one head each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from ensemble_distill.students.per_head import PerHeadBatchNorm, give, per_head, resized

B, HEADS = 3, 4


class Padded(nn.Module):
    """A shortcut that pads channels, which would mix heads if they lay in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))


MAP, VECTOR, SEQUENCE = (4, 6, 5), (4,), (5, 4)
TAILS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), VECTOR),
    "linear of positions, no bias": (lambda: nn.Linear(4, 3, bias=False), SEQUENCE),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1), MAP),
    "convolution in groups, dilated": (lambda: nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same"), MAP),
    "convolution that reflects": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect", bias=False), MAP),
    "convolution of lines": (lambda: nn.Conv1d(5, 2, 3), SEQUENCE),
    "batch normalization": (lambda: nn.BatchNorm2d(4), MAP),
    "batch normalization of vectors": (lambda: nn.BatchNorm1d(4, affine=False), VECTOR),
    "batch normalization without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), MAP),
    "layer normalization": (lambda: nn.LayerNorm(4), SEQUENCE),
    "layer normalization over two": (lambda: nn.LayerNorm((5, 4)), SEQUENCE),
    "layer normalization, plain": (lambda: nn.LayerNorm(4, elementwise_affine=False), SEQUENCE),
    "group normalization": (lambda: nn.GroupNorm(2, 4), MAP),
    "shortcut": (Padded, MAP),
    "network": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
        ),
        MAP,
    ),
}


def varied(make: Callable[[], nn.Module]) -> list[nn.Module]:
    """As many networks as heads, with weights and statistics of their own."""
    tails = [make().double() for _ in range(HEADS)]
    for tail in tails:
        for tensor in tail.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return tails


def of_all(tails: list[nn.Module]) -> nn.Module:
    together = per_head(tails[0], HEADS)
    for head, tail in enumerate(tails):
        give(together, head, tail)
    return together


@pytest.mark.parametrize("name", TAILS)
def test_a_tail_of_all_heads_is_each_heads_own_tail(name: str) -> None:
    for training in [False, True]:
        torch.manual_seed(0)
        make, shape = TAILS[name]
        tails = varied(make)
        together = of_all(tails).train(training)
        x = torch.randn(B, HEADS, *shape, dtype=torch.float64)
        found = together(x.flatten(0, 1))
        wanted = torch.stack([tail.train(training)(x[:, head]) for head, tail in enumerate(tails)], dim=1)
        assert found.shape == (B * HEADS, *wanted.shape[2:])
        assert_close(found.view_as(wanted), wanted)
        # what the step left behind, statistics included, and what it would change
        for head, tail in enumerate(tails):
            theirs = tail.state_dict()
            for key, tensor in together.state_dict().items():
                assert_close(tensor[head], theirs[key])
        if parameters := list(together.parameters()):
            gradients = torch.autograd.grad(found.square().sum(), parameters)
            own = [torch.autograd.grad(w.square().sum(), list(t.parameters())) for t, w in zip(tails, wanted.unbind(1))]  # noqa: B905
            for gradient, parts in zip(gradients, zip(*own, strict=True), strict=True):
                assert_close(gradient, torch.stack(parts))


@pytest.mark.parametrize("name", TAILS)
def test_another_number_of_heads_is_copies_of_the_first(name: str) -> None:
    make, shape = TAILS[name]
    tails = varied(make)
    wider = resized(of_all(tails), 6).eval()
    x = torch.randn(B, 6, *shape, dtype=torch.float64)
    wanted = torch.stack([tails[0].eval()(x[:, head]) for head in range(6)], dim=1)
    assert_close(wider(x.flatten(0, 1)).view_as(wanted), wanted)
    trained = list(wider.parameters())
    assert all(p.requires_grad for p in trained)
    assert len(trained) == len(list(make().parameters()))


def test_the_tail_it_was_made_of_stays_as_it_is() -> None:
    tail = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(tail.state_dict())
    together = per_head(tail, 2)
    together(torch.randn(6, 3))
    assert isinstance(together.get_submodule("1"), PerHeadBatchNorm)
    assert all(torch.equal(before[key], tensor) for key, tensor in tail.state_dict().items())
    assert isinstance(tail[0], nn.Linear)


def test_weights_that_are_no_layers_and_shared_layers_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(2))

    with tiny.refused("The last stage holds gamma in 1 (Scaled)", "Begin the last stage after it"):
        per_head(nn.Sequential(nn.ReLU(), Scaled()), 2)
    with tiny.refused("holds in_proj_weight", "MultiheadAttention"):
        per_head(nn.MultiheadAttention(4, 2), 2)
    with tiny.refused("only torch's own", "BatchNorm1d"):
        per_head(nn.BatchNorm1d(3, momentum=None), 2)
    with tiny.refused("The last stage holds bias in itself (ParametrizedLinear)"):
        per_head(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), 2)
    with tiny.refused("only torch's own", "(Linear)"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        per_head(nn.utils.weight_norm(nn.Linear(3, 3)), 2)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with tiny.refused("Layers of the last stage share weights"):
        per_head(tied, 2)
    layer = nn.Linear(3, 3)
    with tiny.refused("The layer 2 stands at two places"):
        per_head(nn.Sequential(layer, nn.ReLU(), layer), 2)
