"""Several answers a row, against torch.distributions, scikit-learn and plain sums: labels, and numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, mutual_info_score
from torch.distributions import Bernoulli as Coin
from torch.distributions import Categorical as Choice
from torch.distributions import Independent, MixtureSameFamily, Normal, kl_divergence
from torch.testing import assert_close

from ensemble_distill.evaluation.subensembles import SubEnsembles
from ensemble_distill.predictive.bernoulli import Bernoulli
from ensemble_distill.predictive.gaussian_vector import GaussianVector, GaussianVectorFamily
from ensemble_distill.predictive.protocol import Average
from ensemble_distill.tasks.multi_label import average_precisions

B, M, K = 5, 4, 3
WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
UNIT = torch.tensor([0.5, 2.0, 10.0], dtype=torch.float64)


def drawn(seed: int, members: int = M, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(B, members, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- labels -------------------------------------------------------------------------------------------------------


def test_labels_are_coins_of_their_own() -> None:
    z, other = drawn(0), drawn(1)
    y = torch.randint(2, (B, K), generator=torch.Generator().manual_seed(2))
    ours, theirs = Bernoulli(z), Bernoulli(other)
    coins = Independent(Coin(logits=z), 1)
    assert_close(ours.nll(y), -coins.log_prob(y.unsqueeze(1).double()))
    assert_close(ours.kl(theirs), kl_divergence(coins, Independent(Coin(logits=other), 1)))
    assert_close(ours.entropy(), Coin(logits=z).entropy())
    assert_close(ours.means(), Coin(logits=z).probs)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_uncertainties_of_labels_are_sums_of_each_labels_entropies(weights: torch.Tensor | None) -> None:
    z = drawn(3)
    w = torch.full((M,), 1 / M, dtype=torch.float64) if weights is None else weights
    p = (z.sigmoid() * w.view(1, M, 1)).sum(1)
    total = Coin(probs=p).entropy()
    data = (Coin(logits=z).entropy() * w.view(1, M, 1)).sum(1)
    ours = Bernoulli(z, weights)
    assert_close(ours.each().total, total)
    assert_close(ours.each().data, data)
    assert_close(ours.summary().model, (total - data).sum(-1))
    assert_close(ours.summary().mean, p)


def test_model_uncertainty_of_a_label_is_the_mutual_information_with_who_is_asked() -> None:
    """Members as sure as can be: then it is that of a table of counts, scikit-learn's."""
    says = np.array([1, 1, 0, 1])
    z = torch.from_numpy(np.where(says, 40.0, -40.0)).view(1, M, 1)
    wanted = mutual_info_score(np.arange(M), says)
    assert_close(Bernoulli(z).summary().model, torch.tensor([wanted], dtype=torch.float64))


def test_far_logits_keep_their_tiny_probabilities() -> None:
    z = torch.tensor([[[-60.0], [-50.0]], [[60.0], [50.0]]], dtype=torch.float64)
    assert_close(Bernoulli(z).mixture().logits.flatten(), torch.tensor([-50.6931, 50.6931]).double(), rtol=1e-5, atol=0)
    assert Bernoulli(z.float()).pooled_nll(torch.tensor([[1], [0]])).isfinite().all()


def test_average_precisions_are_scikit_learns_and_leave_out_labels_that_no_row_has() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.random((40, 4)), rng.integers(0, 2, (40, 4))
    y[:, 2] = 0
    found = average_precisions(p, y)
    each = [average_precision_score(y[:, k], p[:, k]) for k in (0, 1, 3)]
    assert found["macro_average_precision"] == pytest.approx(np.mean(each))
    assert found["micro_average_precision"] == pytest.approx(average_precision_score(y.ravel(), p.ravel()))
    several = average_precisions(np.stack([p, 1 - p], 1), np.stack([y, y], 1))
    other = average_precisions(1 - p, y)
    for name, value in several.items():
        assert value == pytest.approx((found[name] + other[name]) / 2)
    assert set(average_precisions(p, 0 * y).values()) == {None}
    unlabeled = np.where(y.any(1, keepdims=True), np.nan, p)  # as of a member that answers the other rows alone
    assert not np.isnan(unlabeled).all()
    assert average_precisions(np.stack([unlabeled, 1 - p], 1), np.stack([y, y], 1)) == other


# --- numbers ------------------------------------------------------------------------------------------------------


def test_numbers_are_normal_each_by_itself() -> None:
    mean, log_variance, y = drawn(4), drawn(5, scale=0.5), drawn(6)[:, 0]
    other = GaussianVector(drawn(7), drawn(8, scale=0.5), UNIT)
    ours = GaussianVector(mean, log_variance, UNIT, WEIGHTS)
    normal = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    theirs = Independent(Normal(other.mean, (0.5 * other.log_variance).exp()), 1)
    assert_close(ours.nll(y), -normal.log_prob(y.unsqueeze(1)))
    assert_close(ours.kl(other), kl_divergence(normal, theirs))
    mixture = MixtureSameFamily(Choice(probs=WEIGHTS.expand(B, M)), normal)
    assert_close(ours.pooled_nll(y), -mixture.log_prob(y))
    assert_close(ours.summary().mean, mixture.mean)
    assert_close(ours.each().total, mixture.variance)
    assert_close(ours.summary().total, (mixture.variance / UNIT.square()).mean(-1))
    assert_close(ours.log_width(), (log_variance.exp() * WEIGHTS.view(1, M, 1)).sum(1).log().mean(-1))


def test_uncertainties_over_targets_do_not_depend_on_their_units() -> None:
    scale = torch.tensor([1.0, 1000.0, 0.01], dtype=torch.float64)
    mean, log_variance = drawn(9), drawn(10, scale=0.5)
    one = GaussianVector(mean, log_variance, UNIT)
    other = GaussianVector(mean * scale, log_variance + 2 * scale.log(), UNIT * scale)
    for name in ("total", "data", "model"):
        assert_close(getattr(other.summary(), name), getattr(one.summary(), name))


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": ()},
        {"unit": (1.0, 0.0)},
        {"unit": (1.0, float("inf"))},
        {"unit": (1.0, 1.0), "center": (0.0,), "scale": (1.0,)},
        {"unit": (1.0, 1.0), "center": (0.0, 0.0)},
        {"unit": (1.0,), "center": (0.0,), "scale": (-1.0,)},
    ],
)
def test_a_family_of_numbers_is_of_one_length_and_positive_scales(fields: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="is not a family of"):
        GaussianVectorFamily(**fields)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_best_few_members_are_those_of_the_least_pooled_nll(average: Average) -> None:
    for seed in range(11, 21):  # unequal weights, so that pooling without them would choose others
        members = Bernoulli(drawn(seed), WEIGHTS, average)
        y = torch.randint(2, (B, K), generator=torch.Generator().manual_seed(seed + 1))
        search = SubEnsembles()
        search.add(members, y)
        for size in (2, 3):
            some = list(itertools.combinations(range(M), size))
            each = [Bernoulli(drawn(seed)[:, at], WEIGHTS[at], average) for at in map(list, some)]
            nlls = [float(one.pooled_nll(y).mean()) for one in each]
            assert search.best(size) == some[int(np.argmin(nlls))]
    pairs = list(itertools.combinations(range(M), 2))
    numbers = GaussianVector(drawn(13), drawn(14, scale=0.5), UNIT, WEIGHTS)
    targets = drawn(15)[:, 0]
    search = SubEnsembles()
    search.add(numbers, targets)
    nlls = [
        float(
            replace(numbers, mean=numbers.mean[:, at], log_variance=numbers.log_variance[:, at], weights=WEIGHTS[at])
            .pooled_nll(targets)
            .mean()
        )
        for at in map(list, pairs)
    ]
    assert search.best(2) == pairs[int(np.argmin(nlls))]
