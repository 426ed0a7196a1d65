"""Categorical distributions against torch.distributions, SciPy and plain loops, and the identities they obey."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from predictive_helpers import LABELS, LOGITS, OTHERS, RNG, SHAPES, WEIGHTS, Floats, categorical, shares
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.cache.formats import Format
from ensemble_distill.predictive.categorical import Categorical

weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])


# --- against other people's code --------------------------------------------------------------------------


def test_kl_entropy_and_nll_are_those_of_torch_distributions() -> None:
    for kind in SHAPES:
        p, q = torch.distributions.Categorical, torch.distributions.kl_divergence
        ours, others = categorical(LOGITS[kind]), categorical(OTHERS[kind])
        theirs = p(logits=ours.logits)
        y = torch.tensor(LABELS[kind])
        assert_close(ours.kl(others), q(theirs, p(logits=others.logits)))
        assert_close(ours.entropy(), theirs.entropy())  # type: ignore[no-untyped-call]
        assert_close(ours.nll(y), -theirs.log_prob(y.unsqueeze(1)))  # type: ignore[no-untyped-call]
        assert ours.nll(y).shape == ours.kl(others).shape == ours.entropy().shape == SHAPES[kind][:-1]


def test_one_distribution_is_compared_with_every_member() -> None:
    for kind in SHAPES:
        members, one = categorical(LOGITS[kind]), categorical(OTHERS[kind][:, :1])
        spread = categorical(np.broadcast_to(OTHERS[kind][:, :1], SHAPES[kind]).copy())
        assert_close(members.kl(one), members.kl(spread))
        assert_close(one.kl(members), spread.kl(members))


def test_the_pooled_prediction_is_the_mixture() -> None:
    for weights in [None, WEIGHTS]:
        for kind in SHAPES:
            probabilities = softmax(LOGITS[kind], axis=-1)
            mixture = sum(w * probabilities[:, m] for m, w in enumerate(shares(weights)))
            ours = categorical(LOGITS[kind], weights)
            assert ours.pooled().members == 1
            assert_allclose(ours.pooled().log_probs()[:, 0].exp(), mixture, rtol=1e-12)
            assert ours.mixture().logits.shape == (len(mixture), 1, *mixture.shape[1:])
            assert_allclose(ours.mixture().logits[:, 0], np.log(mixture), rtol=1e-12)
            assert_allclose(ours.means(), probabilities, rtol=1e-12)
            assert_allclose(ours.summary().mean, mixture, rtol=1e-12)


def test_average_logits_pools_the_softmax_of_the_mean_logits() -> None:
    for weights in [None, WEIGHTS]:
        for kind in SHAPES:
            mean = sum(w * LOGITS[kind][:, m] for m, w in enumerate(shares(weights)))
            ours = categorical(LOGITS[kind], weights, "logits")
            assert_allclose(ours.pooled().log_probs()[:, 0], log_softmax(mean, axis=-1), rtol=1e-12)
            assert_allclose(ours.summary().mean, softmax(mean, axis=-1), rtol=1e-12)
            moved = categorical(LOGITS[kind] + RNG.normal(size=(*SHAPES[kind][:-1], 1)), weights, "logits")
            assert_close(moved.pooled().log_probs(), ours.pooled().log_probs())  # a member's offset says nothing
            assert_close(ours.mixture().logits, categorical(LOGITS[kind], weights).mixture().logits)
            y = torch.tensor(LABELS[kind])
            assert_close(
                ours.pooled_nll(y), ours.pooled().nll(y)[:, 0]
            )  # of the prediction that is made, not of the mixture


def test_the_mixtures_nll_is_minus_the_log_of_the_mean_likelihood() -> None:
    for weights in [None, WEIGHTS]:
        for kind in SHAPES:
            y = LABELS[kind]
            found = categorical(LOGITS[kind], weights).pooled_nll(torch.tensor(y)).numpy()
            assert found.shape == y.shape
            for place in np.ndindex(y.shape):
                row, *position = place
                likelihoods = [
                    w * softmax(LOGITS[kind][(row, m, *position)])[y[place]] for m, w in enumerate(shares(weights))
                ]
                assert found[place] == pytest.approx(-np.log(sum(likelihoods)), rel=1e-12)
            nll = categorical(LOGITS[kind]).nll(torch.tensor(y)).numpy()
            mean = logsumexp(-nll, axis=1, b=shares(weights).reshape(1, -1, *[1] * (nll.ndim - 2)))
            assert_allclose(found, -mean, rtol=1e-12)


def test_what_is_pooled_is_one_distribution_and_stays_so() -> None:
    for average in ["probabilities", "logits"]:
        for weights in [None, WEIGHTS]:
            for kind in SHAPES:
                once = categorical(LOGITS[kind], weights, average).pooled()
                assert once.weights is None
                assert not once.has_model_uncertainty
                assert categorical(LOGITS[kind], weights, average).has_model_uncertainty
                assert_close(once.logits, once.log_probs())  # normalized: what is exported as logits
                assert_close(once.pooled().logits, once.logits)
                assert_close(once.summary().total, once.entropy().squeeze(1))
                assert_allclose(once.summary().model, 0, atol=1e-12)


def test_the_uncertainties_are_entropies_of_the_mixture() -> None:
    for average in ["probabilities", "logits"]:
        for weights in [None, WEIGHTS]:
            for kind in SHAPES:
                probabilities = softmax(LOGITS[kind], axis=-1)
                mixture = np.average(probabilities, axis=1, weights=shares(weights))
                total = entropy(mixture, axis=-1)
                data = np.average(entropy(probabilities, axis=-1), axis=1, weights=shares(weights))
                summary = categorical(LOGITS[kind], weights, average).summary()
                assert_allclose(summary.total, total, rtol=1e-10)
                assert_allclose(summary.data, data, rtol=1e-10)
                assert_allclose(summary.model, total - data, rtol=1e-10)


def test_tempering_divides_the_logits() -> None:
    for kind in SHAPES:
        ours = categorical(LOGITS[kind], WEIGHTS, "logits").tempered(2.5)
        assert_allclose(ours.log_probs(), log_softmax(LOGITS[kind] / 2.5, axis=-1), rtol=1e-12)
        assert ours.average == "logits"
        assert ours.weights is not None
        assert_allclose(ours.weights, WEIGHTS)


def test_the_members_mean_is_by_their_weights() -> None:
    for kind in SHAPES:
        values = RNG.normal(size=SHAPES[kind][:-1])
        assert_allclose(
            categorical(LOGITS[kind], WEIGHTS).member_mean(torch.tensor(values)),
            np.average(values, axis=1, weights=WEIGHTS),
        )
        assert_allclose(categorical(LOGITS[kind]).member_mean(torch.tensor(values)), values.mean(1))


def test_weights_are_relative_to_their_sum() -> None:
    whole, tenfold = (categorical(LOGITS["classes"], WEIGHTS * scale) for scale in (1, 10))
    assert_close(tenfold.pooled().logits, whole.pooled().logits)
    assert_close(tenfold.summary().model, whole.summary().model)


def test_float32_weights_leave_no_trace_in_float64_uncertainties() -> None:
    thirds = torch.tensor([1.0, 1.0, 1.0]) / 3  # in float32 they sum to 1 + 3e-8
    clones = torch.tensor(LOGITS["classes"][:, :1]).expand(-1, 3, -1)
    assert Categorical(clones, thirds).summary().model.max() < 1e-14


# --- extreme logits ---------------------------------------------------------------------------------------


EXTREME = np.array(
    [
        [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]],  # the members contradict each other with certainty
        [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]],  # and agree with it
        [[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]],  # uniform, far from 0
        [[0.0, -1e4, -1e4], [0.0, 0.0, -1e4]],
    ]
)


def stored(logits: Floats, dtype: str) -> Tensor:
    """What training and evaluation get of these logits from a cache."""
    form = Format("dense", (logits.shape[-1],), dtype)
    members = [form.decode(form.encode(member.astype(np.float32))) for member in logits.swapaxes(0, 1)]
    return torch.from_numpy(np.stack(members, axis=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite_and_right(dtype: torch.dtype) -> None:
    ours = Categorical(torch.tensor(EXTREME, dtype=dtype))
    assert_allclose(ours.log_probs(), log_softmax(EXTREME, axis=-1), rtol=1e-6)
    assert_allclose(ours.entropy(), entropy(softmax(EXTREME, axis=-1), axis=-1), atol=1e-6)
    summary = ours.summary()
    assert_allclose(summary.model, [np.log(2), 0, 0, entropy([0.75, 0.25]) - np.log(2) / 2], atol=2e-6)
    assert_allclose(summary.total, [np.log(2), 0, np.log(3), entropy([0.75, 0.25])], atol=2e-6)
    assert_allclose(ours.nll(torch.tensor([0, 1, 2, 1])), [[0, 2e4], [2e4, 2e4], [np.log(3)] * 2, [1e4, np.log(2)]])
    # the mixture keeps what the mean of clamped probabilities would lose
    assert_allclose(ours.pooled().nll(torch.tensor([2, 2, 2, 2]))[:, 0], [1e4, 1e4, np.log(3), 1e4 + np.log(4 / 3)])
    divergences = ours.kl(Categorical(torch.tensor(EXTREME[:, ::-1].copy(), dtype=dtype)))
    assert_allclose(divergences[0], [2e4, 2e4])
    assert divergences.isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_extreme_logits_from_a_cache_give_the_same(dtype: str) -> None:
    far = EXTREME * 10  # 2e5 apart: beyond float16, which holds them as its most negative number
    for logits in (EXTREME, far):
        found, wanted = Categorical(stored(logits, dtype)).summary(), categorical(logits).summary()
        assert_close(found.mean.double(), wanted.mean, atol=1e-6, rtol=0)
        assert_close(found.model.double(), wanted.model, atol=2e-6, rtol=0)
        assert_close(found.total.double(), wanted.total, atol=2e-6, rtol=0)


def test_float16_records_keep_model_uncertainty_within_a_thousandth() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(scale=5, size=(2000, 1, 10)) + rng.normal(scale=0.3, size=(2000, 8, 10)) + 300
    found = Categorical(stored(logits, "float16").double()).summary().model
    wanted = categorical(logits).summary().model
    assert float((found - wanted).abs().sum() / wanted.sum()) < 1e-3


def test_gradients_through_extreme_logits_are_finite() -> None:
    logits = torch.tensor(EXTREME, requires_grad=True)
    student = Categorical(logits)
    teacher = categorical(EXTREME[:, ::-1].copy())
    (teacher.kl(student).mean() + student.pooled().nll(torch.tensor([0, 1, 2, 1])).mean()).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0.01


def test_model_uncertainty_keeps_its_digits_where_the_entropies_nearly_cancel() -> None:
    """Members 1e-5 apart: their mutual information is second order, far below float64's rounding of two entropies."""
    rng = np.random.default_rng(5)
    base, apart = rng.normal(size=(50, 1, 10)), rng.normal(scale=1e-5, size=(50, 6, 10))
    p = softmax(base, axis=-1)[:, 0]
    centered = apart - apart.mean(1, keepdims=True)
    fluctuation = p[:, None] * (centered - (p[:, None] * centered).sum(-1, keepdims=True))
    second_order = (fluctuation**2 / (2 * p[:, None])).sum(-1).mean(1)  # of mean KL(p_m ‖ p̄)
    assert second_order.max() < 1e-9
    assert_allclose(categorical(base + apart).summary().model, second_order, rtol=1e-3)
