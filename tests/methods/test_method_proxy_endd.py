"""The proxy's loss against the paper's formula, torch.distributions and scipy; its optimum, and members that agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, WEIGHTS, B, Floats, K, M, a_batch, gradient, softened, stages
from scipy.special import digamma
from scipy.stats import dirichlet
from torch import Tensor
from torch.distributions import Dirichlet as TorchDirichlet
from torch.distributions import kl_divergence
from torch.testing import assert_close

from ensemble_distill.methods.method import Batch
from ensemble_distill.methods.proxy_endd import ProxyEnDD, members_precision
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet

FAMILY = ProxyEnDD().family(open_family("categorical"))
both_divisors = pytest.mark.parametrize("divisor", ["b0", "b0+K"])


def proxy(teacher: Floats, w: Floats) -> tuple[Floats, Floats]:
    """The members' mean (rows, K), and b0 (rows,)."""
    p = softened(teacher, 1.0)
    mean = np.einsum("bmk,m->bk", p, w)
    divergence = np.zeros(len(p))
    for row in range(len(p)):
        for m in range(M):
            divergence[row] += w[m] * sum(mean[row] * (np.log(mean[row]) - np.log(p[row, m])))
    return mean, (K - 1) / (2 * divergence)


def papers_loss(mean: Floats, divisor: Floats, z: Floats) -> Floats:
    """−Σ p̄_k (ψ(α_k) − ψ(α_0)) − H[Dir(α)] / divisor of each row."""
    alpha = np.exp(z[:, 0]) + 1
    expected = -(mean * (digamma(alpha) - digamma(alpha.sum(-1, keepdims=True)))).sum(-1)
    found: Floats = expected - np.array([dirichlet.entropy(row) for row in alpha]) / divisor
    return found


def student(z: Tensor) -> Dirichlet:
    found = FAMILY.predictive(z, None, "probabilities")
    assert isinstance(found, Dirichlet)
    return found


@both_divisors
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_it_is_the_papers_loss_but_for_what_no_student_changes(weights: Floats | None, divisor: str) -> None:
    batch = a_batch(weights=weights)
    (stage,) = stages("proxy-endd", divisor=divisor)
    w = np.full(M, 1 / M) if weights is None else weights
    mean, b0 = proxy(np.asarray(batch.teacher.logits), w)  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    gaps = []
    for scale in (0.5, 1, 2, 4):
        z = rng.normal(scale=scale, size=(B, 1, K))
        theirs = papers_loss(mean, b0 if divisor == "b0" else b0 + K, z).mean()
        gaps.append(float(stage.loss(batch, student(torch.tensor(z)), FIRST)) - theirs)
    assert gaps == pytest.approx([gaps[0]] * 4, abs=1e-9)


def test_it_is_the_reverse_divergence_to_the_proxy_by_its_precision() -> None:
    batch = a_batch()
    (stage,) = stages("proxy-endd")
    mean, b0 = (torch.tensor(v) for v in proxy(np.asarray(batch.teacher.logits), np.full(M, 1 / M)))  # type: ignore[attr-defined]
    z = torch.randn(B, 1, K, dtype=torch.float64)
    target = TorchDirichlet(mean * b0.unsqueeze(-1) + 1)
    expected = (kl_divergence(TorchDirichlet(z[:, 0].exp() + 1), target) / b0).mean()
    assert_close(stage.loss(batch, student(z), FIRST), expected)


@both_divisors
def test_the_optimum_is_the_proxy(divisor: str) -> None:
    """With b0 it has α_0 = b0 + K, with the authors' b0 + K it has α_0 = b0 + 2K."""
    batch = a_batch()
    (stage,) = stages("proxy-endd", divisor=divisor)
    mean, b0 = proxy(np.asarray(batch.teacher.logits), np.full(M, 1 / M))  # type: ignore[attr-defined]
    precision = b0 if divisor == "b0" else b0 + K
    best = torch.tensor(np.log(mean * precision[:, None])).unsqueeze(1).requires_grad_()
    loss = stage.loss(batch, student(best), FIRST)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert_close(gradient(loss, best), torch.zeros_like(best), atol=1e-12, rtol=0)
    assert_close(student(best).concentration.sum(-1), torch.tensor(precision + K).unsqueeze(1), check_dtype=False)


def test_the_proxy_is_of_the_mean_however_members_pool() -> None:
    (stage,) = stages("proxy-endd")
    head = student(torch.randn(B, 1, K, dtype=torch.float64))
    found = stage.loss(a_batch(average="logits"), head, FIRST)
    assert_close(found, stage.loss(a_batch(average="probabilities"), head, FIRST))


def test_an_optimizer_finds_the_proxy() -> None:
    batch = a_batch()
    (stage,) = stages("proxy-endd")
    mean, b0 = proxy(np.asarray(batch.teacher.logits), np.full(M, 1 / M))  # type: ignore[attr-defined]
    z = torch.zeros(B, 1, K, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = stage.loss(batch, student(z), FIRST)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = student(z.detach()).concentration.squeeze(1).numpy()
    assert found == pytest.approx(mean * b0[:, None] + 1, rel=1e-4)


def test_the_precision_is_that_of_the_dirichlet_that_members_were_drawn_from() -> None:
    p = np.random.default_rng(0).dirichlet([30.0, 20.0, 10.0, 40.0], size=(3, 4000))
    found = members_precision(Categorical(torch.tensor(np.log(p))), 1e6)
    assert found.numpy() == pytest.approx(100, rel=0.05)


def test_members_that_agree_have_the_largest_precision() -> None:
    for noise in [0.0, 1e-9]:
        for largest in [1e3, 1e6]:
            torch.manual_seed(0)
            logits = torch.randn(B, 1, K).expand(B, M, K) + noise * torch.randn(B, M, K)
            batch = Batch(Categorical(logits), None)
            (stage,) = stages("proxy-endd", max_precision=largest)
            best = (logits[:, :1].double().log_softmax(-1) + math.log(largest)).requires_grad_()
            loss = stage.loss(batch, student(best), FIRST)
            assert float(loss.detach()) == pytest.approx(0, abs=1e-9)
            assert_close(gradient(loss, best), torch.zeros_like(best), atol=1e-9, rtol=0)
            doubt = student(best.detach()).summary().model.squeeze()
            assert_close(doubt, torch.full_like(doubt, (K - 1) / (2 * largest)), rtol=0.01, atol=0)
            start = torch.zeros(B, 1, K, requires_grad=True)
            loss = stage.loss(batch, student(start), FIRST)
            assert loss.isfinite()
            found = gradient(loss, start)
            assert 1e-3 < float(found.abs().max()) < 1  # neither lost nor exploding


def test_it_is_computed_in_float64() -> None:
    """Near the optimum of members that nearly agree, what is left of log-gammas of 1e5 is far below float32's steps."""
    torch.manual_seed(0)
    logits = torch.randn(B, 1, K) + 1e-2 * torch.randn(B, M, K)
    (stage,) = stages("proxy-endd")
    mean, b0 = proxy(logits.double().numpy(), np.full(M, 1 / M))
    assert 1e4 < b0.min() < b0.max() < 1e6
    z = torch.tensor(np.log(mean * b0[:, None]) + 0.01, dtype=torch.float32).unsqueeze(1)
    dirichlet = student(z)
    alpha = dirichlet.log_concentration.double().exp().squeeze(1)
    target = TorchDirichlet(torch.tensor(mean * b0[:, None] + 1))
    expected = float((kl_divergence(TorchDirichlet(alpha), target) / torch.tensor(b0)).mean())
    assert float(stage.loss(Batch(Categorical(logits), None), dirichlet, FIRST)) == pytest.approx(expected, rel=1e-3)
