"""ODS and ConfODS move an input as their formulas say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from ods_helpers import CPU, TO, affine_of, by_hand, inputs_of, softmax
from scipy import stats
from tiny import CLASSES, SIDE, linear, member_state
from torch import Tensor, nn

from ensemble_distill.caching.gradient import moved
from ensemble_distill.caching.pushing import _unit
from ensemble_distill.data.push import Push
from ensemble_distill.data.source import Kind
from ensemble_distill.data.views import open_view
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.network import Network


class Permuted(nn.Module):
    def __init__(self, module: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.module, self.order = module, list(order)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[:, self.order]  # type: ignore[no-any-return]


def three(kind: Kind) -> list[Answering]:
    """Equal in what they are of: logits, probabilities, logits in another class order; other means and deviations."""
    first, second = TO, replace(TO, mean=(0.2,), std=(0.3,))
    if kind == "tensor":
        first = second = None  # type: ignore[assignment]
    members = [
        Member("a", "a", preprocessing=first),
        Member("b", "b", output="probabilities", preprocessing=second),
        Member("c", "c", class_order=(2, 0, 1), preprocessing=second),
    ]
    modules = [linear(0), nn.Sequential(linear(1), nn.Softmax(1)), Permuted(linear(2), (2, 0, 1))]
    return [Network(Classification, member, module) for member, module in zip(members, modules, strict=True)]


def alone(module: nn.Module, to: Preprocessing = TO) -> list[Answering]:
    return [Network(Classification, Member("a", "a", preprocessing=to), module)]


@pytest.mark.parametrize("spec", ["ods", "confods"])
@pytest.mark.parametrize("kind", ["pixels", "tensor"])
def test_inputs_move_as_the_closed_form_of_linear_members_says(spec: str, kind: Kind) -> None:
    members = three(kind)
    x = inputs_of(30) if kind == "pixels" else 3 * inputs_of(30) - 1
    pushes: list[Push] = [open_view(spec).plan(4, 1, row, 30).push for row in range(30)]  # type: ignore[attr-defined]
    found = moved(x, pushes, kind, members, CPU, "train", range(30))
    asked = [push.member(3) for push in pushes]
    assert set(asked) == {0, 1, 2}
    for row, (push, index) in enumerate(zip(pushes, asked, strict=True)):
        w, to = push.weights(CLASSES), members[index].member.preprocessing
        expected = by_hand(x[row].astype(np.float64), *affine_of(index), w, to, spec == "confods", kind == "pixels")
        assert_allclose(found[row], expected, atol=2e-6)
    assert found.dtype == np.float32
    if kind == "pixels":
        assert 0 <= found.min() <= found.max() <= 1
    elif spec == "ods":
        assert_allclose(np.sqrt(((found - x).astype(np.float64) ** 2).mean((1, 2, 3))), 1 / 255, rtol=1e-4)


def test_channels_move_by_their_own_deviations() -> None:
    to = Preprocessing((4, 5), (0.4, 0.5, 0.6), (0.1, 0.2, 0.4))
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(CLASSES, 60)), rng.uniform(0.2, 0.8, (6, 3, 4, 5)).astype(np.float32)
    module = nn.Sequential(nn.Flatten(), nn.Linear(60, CLASSES, bias=False))
    module.load_state_dict({"1.weight": torch.tensor(a, dtype=torch.float32)})
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(6)]
    found = moved(x, push, "pixels", alone(module, to), CPU, "train", range(6))
    std = np.repeat(to.std, 20)
    for row in range(6):
        p, w = softmax(a @ ((x[row].ravel() - np.repeat(to.mean, 20)) / std)), push[row].weights(CLASSES)
        g = a.T @ (p * (w - w @ p)) / std
        assert_allclose(found[row].ravel() - x[row].ravel(), np.sqrt(60) / 255 * g / np.sqrt(g @ g), atol=1e-6)


def test_each_channel_comes_back_from_its_own_normalization() -> None:
    to = Preprocessing((4, 5), (0.4, 0.5, 0.6), (0.1, 0.2, 0.4))
    unit = np.random.default_rng(0).uniform(0, 1, (2, 3, 4, 5)).astype(np.float32)
    shown = ((unit.transpose(0, 2, 3, 1) - to.mean) / to.std).transpose(0, 3, 1, 2).astype(np.float32)
    assert_allclose(_unit(shown, to, "pixels"), unit, atol=1e-6)
    assert _unit(shown, None, "tensor") is shown


def test_a_row_moves_alike_whatever_the_batch() -> None:
    members = three("pixels")
    x = inputs_of(12)
    pushes: list[Any] = [open_view("ods").plan(0, 0, row, 12).push for row in range(12)]  # type: ignore[attr-defined]
    together = moved(x, pushes, "pixels", members, CPU, "train", range(12))
    order = [5, 0, 11, 7]
    some = moved(x[order], [pushes[i] for i in order], "pixels", members, CPU, "train", order)
    assert_allclose(some, together[order], atol=1e-6)
    assert_array_equal(x, inputs_of(12))


def test_a_member_that_is_sure_still_gives_a_direction() -> None:
    """Its softmax is 1 in single precision, and all derivatives are 0."""
    sure = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    state = {name.replace("2.", "1."): 40 * value for name, value in member_state(0).items()}
    sure.load_state_dict(state)
    x = inputs_of(8)
    a, b = (40 * part for part in affine_of(0))
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(8)]
    found = moved(x, push, "pixels", alone(sure.eval()), CPU, "train", range(8))
    assert max(softmax(a @ (2 * row.ravel().astype(np.float64) - 1) + b).max() for row in x) == 1
    for row in range(8):
        z = a @ (2 * x[row].ravel().astype(np.float64) - 1) + b
        p, w = softmax(z), push[row].weights(CLASSES)
        top = int(z.argmax())
        slope = np.array([p[k] * sum(p[j] * (w[k] - w[j]) for j in range(CLASSES) if j != k) for k in range(CLASSES)])
        assert slope[top] != 0
        g = a.T @ (slope / np.abs(slope).max())
        expected = (x[row].ravel() + SIDE / 255 * g / np.sqrt(g @ g)).clip(0, 1)
        assert_allclose(found[row].ravel(), expected, atol=1e-5)


def test_an_input_without_a_gradient_stays() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    nn.init.zeros_(flat[1].weight)  # type: ignore[arg-type]
    x = inputs_of(3)
    push = [Push(("ods", 0, 0, row), 1 / 255, False) for row in range(3)]
    assert_array_equal(moved(x, push, "pixels", alone(flat), CPU, "train", range(3)), x)


def test_draws_are_uniform_and_each_their_own() -> None:
    plans: list[Any] = [open_view("mixup+ods").plan(0, 0, row, 3000) for row in range(3000)]
    pushes = [plan.push for plan in plans]
    assert stats.chisquare(np.bincount([push.member(5) for push in pushes])).pvalue > 1e-3
    weights = np.stack([push.weights(20) for push in pushes[:300]])
    assert stats.kstest(weights.ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert len(np.unique(weights)) == weights.size
    assert not np.array_equal(pushes[0].weights(20), open_view("confods").plan(0, 0, 0, 9).push.weights(20))  # type: ignore[attr-defined]
    mixes = [replace(plan, push=None) for plan in plans[:50]]
    assert mixes == [open_view("mixup").plan(0, 0, row, 3000) for row in range(50)], "the rest is as without it"
