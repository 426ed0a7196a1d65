"""Hydra's two losses against NumPy loops and torch.distributions, and how it gets from one head to many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_helpers import FEATURES, FIRST, WEIGHTS, B, Floats, K, M, a_batch, a_student, gradient, softened, stages
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.predictive.protocol import Average


def hinton_loss(teacher: Floats, student: Floats, t: float, w: Floats, average: Average) -> float:
    """T² × mean over rows of KL(the softened members' mean ‖ the one softened head)."""
    total = 0.0
    for members, (head,) in zip(teacher, student, strict=True):
        if average == "probabilities":
            target = sum(w[m] * softened(members[m], t) for m in range(M))
        else:
            target = softened(sum(w[m] * members[m] for m in range(M)), t)
        q = softened(head, t)
        total += sum(target[k] * (np.log(target[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


def heads_loss(teacher: Floats, student: Floats, t: float, w: Floats) -> float:
    """T² × mean over rows of Σ_m w_m KL(softened member m ‖ softened head m); w_m = 1/M in the paper."""
    total = 0.0
    for members, heads in zip(teacher, student, strict=True):
        for m in range(M):
            p, q = softened(members[m], t), softened(heads[m], t)
            total += w[m] * sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(K))
    return t**2 * total / len(teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_losses_are_the_papers(temperature: float, weights: Floats | None, average: Average) -> None:
    batch = a_batch(weights=weights, average=average)
    teacher = np.asarray(batch.teacher.logits)  # type: ignore[attr-defined]
    w = np.full(M, 1 / M) if weights is None else weights
    hinton, heads = stages("hydra", temperature=temperature)
    rng = np.random.default_rng(1)
    one, many = rng.normal(size=(B, 1, K)), rng.normal(size=(B, M, K))
    found = hinton.loss(batch, Categorical(torch.tensor(one)), FIRST)
    assert float(found) == pytest.approx(hinton_loss(teacher, one, temperature, w, average), rel=1e-12)
    found = heads.loss(batch, Categorical(torch.tensor(many)), FIRST)
    assert float(found) == pytest.approx(heads_loss(teacher, many, temperature, w), rel=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_for_numbers_each_head_has_the_divergence_from_its_own_normal(
    weights: Floats | None, temperature: float
) -> None:
    batch = a_batch("regression", weights=weights)
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    mean, log_variance = torch.randn(2, B, M, dtype=torch.float64)
    _, heads = stages("hydra", temperature=temperature)
    w = np.full(M, 1 / M) if weights is None else weights
    expected = 0.0
    for m in range(M):
        of_member = Normal(teacher.mean[:, m], (temperature * teacher.log_variance[:, m].exp()).sqrt())
        of_head = Normal(mean[:, m], (temperature * log_variance[:, m].exp()).sqrt())
        expected += temperature**2 * w[m] * float(kl_divergence(of_member, of_head).mean())
    assert float(heads.loss(batch, Gaussian(mean, log_variance), FIRST)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_keep_their_size_as_the_temperature_rises(temperature: float) -> None:
    """T (q − p) / B, times 1/M with a head per member: T² makes up for what the temperature takes."""
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=temperature)
    targets = softened(np.asarray(batch.teacher.logits), temperature)  # type: ignore[attr-defined]
    for stage, count, target in ((hinton, 1, targets.mean(1, keepdims=True)), (heads, M, targets)):
        logits = torch.randn(B, count, K, dtype=torch.float64, requires_grad=True)
        found = gradient(stage.loss(batch, Categorical(logits), FIRST), logits)
        q = softened(logits.detach().numpy(), temperature)
        assert_close(found, torch.tensor(temperature * (q - target) / (B * count)))


def test_the_losses_vanish_at_their_targets_alone() -> None:
    batch = a_batch()
    hinton, heads = stages("hydra", temperature=3.0)
    assert isinstance(batch.teacher, Categorical)
    offset = torch.randn(B, M, 1, dtype=torch.float64)
    assert float(heads.loss(batch, Categorical(batch.teacher.logits + offset), FIRST)) == pytest.approx(0, abs=1e-12)
    mean = 3 * batch.teacher.tempered(3).pooled().logits
    assert float(hinton.loss(batch, Categorical(mean), FIRST)) == pytest.approx(0, abs=1e-12)
    collapsed = Categorical((3 * batch.teacher.tempered(3).pooled().logits).expand(-1, M, -1))
    disagreement = 9 * batch.teacher.tempered(3).summary().model.mean()
    assert_close(heads.loss(batch, collapsed, FIRST), disagreement)  # what is left to a second phase to learn


def test_for_numbers_the_losses_vanish_at_their_targets_alone() -> None:
    batch = a_batch("regression")
    hinton, heads = stages("hydra")
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    assert float(heads.loss(batch, teacher, FIRST)) == pytest.approx(0, abs=1e-12)
    mean, variance = teacher.mean.mean(1), teacher.log_variance.exp().mean(1) + teacher.mean.var(1, correction=0)
    moments = Gaussian(mean.unsqueeze(1), variance.log().unsqueeze(1))
    assert float(hinton.loss(batch, moments, FIRST)) == pytest.approx(0, abs=1e-12)
    assert float(hinton.loss(batch, Gaussian(teacher.mean[:, :1], teacher.log_variance[:, :1]), FIRST)) > 0.01


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_hinton_head_is_copied_and_the_body_kept(task: str) -> None:
    hinton, heads = stages("hydra", hinton_share=0.25)
    assert (hinton.share, heads.share) == (0.25, 0.75)
    student = a_student("hydra", task)
    assert hinton.start(student) is student
    grown = heads.start(student)
    assert grown.body is student.body
    x = torch.randn(B, FEATURES, dtype=torch.float64)
    assert_close(grown(x), student(x).expand(-1, M, -1))
