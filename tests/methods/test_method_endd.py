"""EnD² against scipy's Dirichlet, and the temperature it is annealed by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, HALF, LAST, WEIGHTS, B, Floats, K, M, a_batch, gradient, said, softened, stages
from scipy.optimize import minimize
from scipy.stats import dirichlet
from torch.testing import assert_close

from ensemble_distill.methods import open_method
from ensemble_distill.methods.endd import EnDDOptions, annealed
from ensemble_distill.methods.method import Batch, Step
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet


def likelihood_loss(teacher: Floats, z: Floats, t: float, smoothing: float, w: Floats) -> float:
    """−T² × mean over rows of Σ_m w_m ln Dir(smoothed and softened p_m; exp(z/T))."""
    total = 0.0
    for members, (head,) in zip(teacher, z, strict=True):
        for m in range(M):
            p = (1 - smoothing) * softened(members[m], t) + smoothing / K
            total -= w[m] * float(dirichlet.logpdf(p / p.sum(), np.exp(head / t)))
    return t**2 * total / len(teacher)


def test_the_loss_is_the_papers_at_every_temperature() -> None:
    for step, temperature in [(FIRST, 8.0), (HALF, 4.5), (LAST, 1.0)]:
        for weights in [None, WEIGHTS]:
            batch, method = a_batch(weights=weights), open_method("endd")
            (stage,) = stages("endd", first_temperature=8.0, anneal_share=2 / 3, smoothing=0.01)
            z = np.random.default_rng(1).normal(1, 1, size=(B, 1, K))
            w = np.full(M, 1 / M) if weights is None else weights
            expected = likelihood_loss(np.asarray(batch.teacher.logits), z, temperature, 0.01, w)  # type: ignore[attr-defined]
            student = said(method, "classification", torch.tensor(z))
            assert float(stage.loss(batch, student, step)) == pytest.approx(expected, rel=1e-10)


def test_the_temperature_is_held_then_falls_in_a_line_to_1() -> None:
    options = EnDDOptions(first_temperature=10, anneal_share=2 / 3)
    found = [annealed(options, progress) for progress in (0.01, 0.2, 1 / 3, 5 / 12, 0.5, 7 / 12, 2 / 3, 0.8, 1)]
    assert found == pytest.approx([10, 10, 10, 7.75, 5.5, 3.25, 1, 1, 1])
    assert all(annealed(EnDDOptions(anneal_share=share), 1) == 1 for share in np.linspace(0.001, 1, 997))
    assert [annealed(EnDDOptions(), 0.1, steps) for steps in (96, 9_999, 10_000, 35_000)] == [3, 3, 10, 10]
    assert annealed(EnDDOptions(), 1.0, 96) == 1
    timed = [open_method("endd").timed(EnDDOptions(), steps) for steps in (96, 10_000)]
    assert timed == [EnDDOptions(first_temperature=3), EnDDOptions(first_temperature=10)]
    assert open_method("endd").timed(EnDDOptions(first_temperature=8), 96) == EnDDOptions(first_temperature=8)
    assert {annealed(EnDDOptions(first_temperature=1), progress) for progress in (0.01, 0.5, 1)} == {1}


def test_the_default_temperature_is_that_of_the_steps_there_are() -> None:
    batch, student = a_batch(), Dirichlet(torch.randn(B, 1, K, dtype=torch.float64))
    (default,), (three,), (ten,) = (
        stages("endd"),
        stages("endd", first_temperature=3),
        stages("endd", first_temperature=10),
    )
    for step, same, other in ((Step(0, 9_999), three, ten), (Step(0, 10_000), ten, three)):
        assert_close(default.loss(batch, student, step), same.loss(batch, student, step))
        assert float(default.loss(batch, student, step)) != pytest.approx(float(other.loss(batch, student, step)))


def test_validation_is_at_temperature_1() -> None:
    batch = a_batch()
    student = Dirichlet(torch.randn(B, 1, K, dtype=torch.float64))
    (hot,), (cold,) = stages("endd", first_temperature=10), stages("endd", first_temperature=1)
    assert_close(hot.loss(batch, student, Step(0, 1)), cold.loss(batch, student, FIRST))
    assert float(hot.loss(batch, student, FIRST)) != pytest.approx(float(cold.loss(batch, student, FIRST)), rel=0.1)


def test_the_optimum_is_the_dirichlet_the_members_were_drawn_from() -> None:
    """Of scipy's likelihood of the same draws, exactly; of the truth, as near as 4,000 draws tell."""
    truth = np.array([4.0, 2.0, 1.0, 0.7])
    p = np.random.default_rng(0).dirichlet(truth, size=4000).clip(1e-12)
    p /= p.sum(-1, keepdims=True)
    batch = Batch(Categorical(torch.tensor(np.log(p)).unsqueeze(0)), None)
    (stage,) = stages("endd", smoothing=1e-9)
    best = minimize(lambda z: -np.mean(dirichlet.logpdf(p.T, np.exp(z))), np.zeros(K), tol=1e-10).x
    z = torch.tensor(best).view(1, 1, K).requires_grad_()
    assert_close(
        gradient(stage.loss(batch, Dirichlet(z), LAST), z), torch.zeros(1, 1, K), atol=1e-4, rtol=0, check_dtype=False
    )
    assert np.exp(best) == pytest.approx(truth, rel=0.05)


def test_smoothing_bounds_what_one_confident_member_counts() -> None:
    """Without it a probability of e^-200 would weigh two hundred times one of e^-1."""
    logits = torch.zeros(1, M, K, dtype=torch.float64)
    logits[0, 0, 0] = -200
    student = Dirichlet(torch.ones(1, 1, K, dtype=torch.float64))
    losses = [
        float(stages("endd", smoothing=smoothing)[0].loss(Batch(Categorical(logits), None), student, LAST))
        for smoothing in (1e-3, 1e-30)
    ]
    floor = (np.e - 1) / M  # the weight of ln p_0 of member 0
    assert losses[1] - losses[0] == pytest.approx(floor * (np.log(1e-3) - np.log(1e-30)), rel=1e-3)


def test_a_large_precision_is_computed_in_float64() -> None:
    """ln Γ(1e7) is 1.5e8, of which float32 keeps steps of 16; the loss is about −22."""
    torch.manual_seed(0)
    logits = torch.randn(B, 1, K) + 1e-3 * torch.randn(B, M, K)
    z = logits[:, :1].log_softmax(-1) + np.log(1e7)
    (stage,) = stages("endd", smoothing=1e-12)
    expected = likelihood_loss(logits.double().numpy(), z.double().numpy(), 1.0, 1e-12, np.full(M, 1 / M))
    assert float(stage.loss(Batch(Categorical(logits), None), Dirichlet(z), LAST)) == pytest.approx(expected, abs=1e-5)
