"""Knowledge distillation's loss against torch.distributions, and what it is least at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, WEIGHTS, B, Floats, K, M, a_batch, gradient, softened, stages
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ensemble_distill.methods.method import Batch
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.gaussian import Gaussian

both_weights = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])


def shares(weights: Floats | None) -> Floats:
    return np.full(M, 1 / M) if weights is None else weights


@both_weights
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_for_classes_it_is_the_divergence_from_the_mean_of_the_softened(
    weights: Floats | None, temperature: float
) -> None:
    batch = a_batch(weights=weights)
    (stage,) = stages("kd", temperature=temperature)
    assert isinstance(batch.teacher, Categorical)
    mean = np.einsum("bmk,m->bk", softened(batch.teacher.logits.numpy(), temperature), shares(weights))
    logits = torch.randn(B, 1, K, dtype=torch.float64)
    student = TorchCategorical(logits=logits[:, 0] / temperature)
    expected = temperature**2 * kl_divergence(TorchCategorical(probs=torch.tensor(mean)), student).mean()
    assert_close(stage.loss(batch, Categorical(logits), FIRST), expected)


def test_members_pooled_by_their_logits_are_learned_as_such() -> None:
    batch = a_batch(average="logits")
    (stage,) = stages("kd")
    assert isinstance(batch.teacher, Categorical)
    geometric = batch.teacher.logits.mean(1, keepdim=True)
    assert float(stage.loss(batch, Categorical(geometric), FIRST)) == pytest.approx(0, abs=1e-12)


@both_weights
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_for_numbers_it_is_the_divergence_from_the_mixtures_moments(weights: Floats | None, temperature: float) -> None:
    batch = a_batch("regression", weights=weights)
    (stage,) = stages("kd", temperature=temperature)
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    members, w = teacher.mean.numpy(), shares(weights)
    mean = members @ w
    variance = (temperature * np.exp(teacher.log_variance.numpy()) + members**2) @ w - mean**2
    target = Normal(torch.tensor(mean), torch.tensor(variance).sqrt())
    m, v = torch.randn(2, B, 1, dtype=torch.float64)
    student = Normal(m[:, 0], (temperature * v[:, 0].exp()).sqrt())
    expected = temperature**2 * kl_divergence(target, student).mean()
    assert_close(stage.loss(batch, Gaussian(m, v), FIRST), expected)


@both_weights
def test_for_numbers_no_normal_is_nearer_to_the_members(weights: Floats | None) -> None:
    """Its gradient is that of the members' mean divergence from the student, so both are least at the same normal."""
    batch = a_batch("regression", weights=weights)
    (stage,) = stages("kd")
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    numbers = torch.randn(2, B, 1, dtype=torch.float64, requires_grad=True)
    found = gradient(stage.loss(batch, Gaussian(*numbers), FIRST), numbers)
    each = kl_divergence(
        Normal(teacher.mean, (teacher.log_variance / 2).exp()), Normal(numbers[0], (numbers[1] / 2).exp())
    )
    assert_close(found, gradient((each @ torch.tensor(shares(weights))).mean(), numbers))


def test_for_numbers_a_temperature_takes_from_the_disagreement() -> None:
    """As documented: it is least at the variance data + model / T."""
    batch = a_batch("regression")
    teacher = batch.teacher
    assert isinstance(teacher, Gaussian)
    data, model = teacher.log_variance.exp().mean(1), teacher.mean.var(1, correction=0)
    for temperature in (1.0, 4.0):
        (stage,) = stages("kd", temperature=temperature)
        best = Gaussian(teacher.mean.mean(1, keepdim=True), (data + model / temperature).log().unsqueeze(1))
        assert float(stage.loss(batch, best, FIRST)) == pytest.approx(0, abs=1e-12)


def test_it_is_hydras_first_phase() -> None:
    batch = a_batch()
    student = Categorical(torch.randn(B, 1, K, dtype=torch.float64))
    (mean,), (hinton, _) = stages("kd", temperature=3.0), stages("hydra", temperature=3.0)
    assert_close(mean.loss(Batch(batch.teacher, None), student, FIRST), hinton.loss(batch, student, FIRST))
    assert mean.share == 1
