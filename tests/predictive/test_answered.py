"""Members that do not answer every row: a row is that of those who do, in every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.answered import answering, matched, those_who_answer
from ensemble_distill.predictive.dirichlet import Dirichlet

B, M, W = 12, 4, 4
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("categorical", {}),
    ("bernoulli", {}),
    ("gaussian", {}),
    ("gaussian-vector", {"unit": (2.0, 0.5)}),
]
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])


def drawn(name: str, seed: int = 0) -> np.ndarray[Any, Any]:
    """Outputs (B, M, W); of every row some member, and of row 0 all, answer."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(B, M, 2 if name == "gaussian" else W))
    there = rng.random((B, M)) < 0.5
    there[np.arange(B), rng.integers(0, M, B)] = True
    there[0] = True
    return np.where(there[..., None], outputs, np.nan)


def labels(name: str) -> torch.Tensor:
    rng = np.random.default_rng(9)
    if name == "categorical":
        return torch.tensor(rng.integers(0, W, B))
    if name == "bernoulli":
        return torch.tensor(rng.integers(0, 2, (B, W)))
    return torch.tensor(rng.normal(size=B if name == "gaussian" else (B, 2)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize(("name", "fields"), FAMILIES)
def test_a_row_is_that_of_the_members_who_answer(name: str, fields: Any, average: Any, weights: Any) -> None:
    family, outputs, y = open_family(name, **fields), drawn(name), labels(name)
    other = torch.tensor(np.random.default_rng(5).normal(size=outputs.shape))
    of = None if weights is None else torch.tensor(weights)
    said = family.predictive(*those_who_answer(torch.tensor(outputs), of), average)
    student = family.predictive(other, of, average)
    same = matched(student, said)
    assert answering(said) is not None
    for row in range(B):
        some = np.flatnonzero(~np.isnan(outputs[row, :, 0]))
        own = None if of is None else of[some]
        alone = family.predictive(torch.tensor(outputs[[row]][:, some]), own, average)
        theirs = family.predictive(other[[row]][:, some], own, average)
        assert int(answering(said)[row]) == len(some)  # type: ignore[index]
        for found, wanted in (
            (said.summary(), alone.summary()),
            (same.summary(), theirs.summary()),
        ):
            for field in ("mean", "total", "data", "model"):
                assert_close(getattr(found, field)[[row]], getattr(wanted, field))
        assert_close(said.pooled_nll(y)[[row]], alone.pooled_nll(y[[row]]))
        assert_close(said.pooled().kl(same.pooled())[[row]], alone.pooled().kl(theirs.pooled()))
        assert_close(said.member_mean(said.kl(student))[[row]], alone.member_mean(alone.kl(theirs)))
        apart = alone.member_mean(alone.deviation_error(theirs))
        assert_close(said.member_mean(said.deviation_error(same))[[row]], apart)
        shares = torch.zeros(1, 1, M, dtype=torch.float64)
        shares[0, 0, some] = (torch.ones(len(some)) / len(some) if own is None else own / own.sum()).double()
        parts = said.parts(shares.expand(B, -1, -1), y)
        assert_close(parts.model[[row], 0], alone.summary().model, atol=1e-9, rtol=1e-6)
        assert parts.nll is not None
        assert_close(parts.nll[[row], 0], alone.pooled_nll(y[[row]]))


def test_classes_against_numpy() -> None:
    outputs = drawn("categorical")
    said = open_family("categorical").predictive(*those_who_answer(torch.tensor(outputs), None), "probabilities")
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    mean = np.nanmean(p, axis=1)
    entropy = -(mean * np.log(mean)).sum(-1)
    data = np.nanmean(-(p * np.log(p)).sum(-1), axis=1)
    found = said.summary()
    for mine, wanted in ((found.mean, mean), (found.total, entropy), (found.data, data), (found.model, entropy - data)):
        assert_close(mine, torch.tensor(wanted), atol=1e-12, rtol=1e-9)


def test_who_has_no_head_for_each_member_is_compared_as_it_is() -> None:
    family = open_family("categorical")
    said = family.predictive(*those_who_answer(torch.tensor(drawn("categorical")), None), "probabilities")
    one = family.predictive(torch.zeros(B, 1, W), None, "probabilities")
    assert matched(one, said) is one
    dirichlet = Dirichlet(torch.zeros(B, 1, W))
    assert matched(dirichlet, said) is dirichlet
    whole = family.predictive(torch.zeros(B, M, W), None, "probabilities")
    assert matched(whole, whole) is whole
    assert answering(whole) is None
    outputs = torch.zeros(B, 1, W)
    outputs[0] = torch.nan
    single = family.predictive(*those_who_answer(outputs, None), "probabilities")
    assert matched(dirichlet, single) is dirichlet


def test_what_stands_in_for_an_answer_is_as_far_off_as_the_others() -> None:
    """Squared, the distance from 0 would be infinite in float32, and weight 0 does not help against infinity."""
    outputs = torch.tensor([[[3.0e19, 83.0], [3.1e19, 84.0], [torch.nan, torch.nan]]])
    family = open_family("gaussian")
    said = family.predictive(*those_who_answer(outputs, None), "probabilities")
    raw = torch.tensor([[[3.2e19, 83.0]] * 3])
    alone = family.predictive(outputs[:, :2], None, "probabilities")
    wanted = alone.member_mean(alone.kl(family.predictive(raw[:, :2], None, "probabilities")))
    assert wanted.isfinite().all()
    assert_close(said.member_mean(said.kl(family.predictive(raw, None, "probabilities"))), wanted)


def test_a_gradient_reaches_the_heads_of_those_who_answer_alone() -> None:
    outputs, family = drawn("categorical"), open_family("categorical")
    teacher = family.predictive(*those_who_answer(torch.tensor(outputs), None), "probabilities")
    raw = torch.zeros(B, M, W, dtype=torch.float64, requires_grad=True)
    student = family.predictive(raw, None, "probabilities")
    same = matched(student, teacher)
    loss = teacher.member_mean(teacher.kl(student)) + teacher.pooled().kl(same.pooled())[:, 0]
    (gradient,) = torch.autograd.grad(loss.sum(), raw)
    assert gradient.isfinite().all()
    silent = np.isnan(outputs[..., 0])
    assert (gradient[torch.tensor(silent)] == 0).all()
    assert (gradient[torch.tensor(~silent)].abs().sum(-1) > 0).all()
