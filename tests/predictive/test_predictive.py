"""Categorical distributions against torch.distributions, SciPy and plain loops, and the identities they obey."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import entropy
from torch import Tensor
from torch.testing import assert_close

from ensemble_distill.cache.formats import Format
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Average

Floats = NDArray[np.float64]

SHAPES = {"classes": (5, 4, 3), "positions": (3, 4, 2, 6)}  # (B, M, K) and (B, M, L, K)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
RNG = np.random.default_rng(0)
LOGITS = {name: RNG.normal(scale=3, size=shape) for name, shape in SHAPES.items()}
OTHERS = {name: RNG.normal(scale=3, size=shape) for name, shape in SHAPES.items()}
LABELS = {"classes": RNG.integers(0, 3, (5,)), "positions": RNG.integers(0, 6, (3, 2))}

either = pytest.mark.parametrize("kind", SHAPES)
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])


def categorical(logits: Floats, weights: Floats | None = None, average: Average = "probabilities") -> Categorical:
    return Categorical(torch.tensor(logits), None if weights is None else torch.tensor(weights), average)


def shares(weights: Floats | None, members: int = 4) -> Floats:
    return np.full(members, 1 / members) if weights is None else weights


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


# --- identities -------------------------------------------------------------------------------------------

scores = arrays(np.float64, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(-30, 30))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def weights_for(members: int) -> st.SearchStrategy[Floats | None]:
    return st.none() | arrays(np.float64, members, elements=st.floats(0.01, 1)).map(lambda w: w / w.sum())


@quick
@given(logits=scores)
def test_kl_is_zero_at_equality_and_never_negative(logits: Floats) -> None:
    ours = categorical(logits)
    assert_allclose(ours.kl(ours), 0, atol=1e-12)
    assert_allclose(ours.kl(categorical(logits + 3)), 0, atol=1e-12)
    assert (ours.kl(categorical(logits[..., ::-1].copy())) > -1e-12).all()


@quick
@given(data=st.data(), logits=scores, members=st.integers(1, 5))
def test_clones_have_no_model_uncertainty(data: st.DataObject, logits: Floats, members: int) -> None:
    weights = data.draw(weights_for(members))
    summary = categorical(np.repeat(logits[:, :1], members, axis=1), weights).summary()
    assert_allclose(summary.model, 0, atol=1e-13)
    assert_allclose(summary.total, entropy(softmax(logits[:, 0], axis=-1), axis=-1), atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_permuting_the_members_changes_nothing(data: st.DataObject, logits: Floats) -> None:
    members = logits.shape[1]
    weights = data.draw(weights_for(members))
    order = np.array(data.draw(st.permutations(range(members))))
    moved_weights = None if weights is None else weights[order]
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        before, after = categorical(logits, weights, average), categorical(logits[:, order], moved_weights, average)
        assert_close(before.pooled().logits, after.pooled().logits, rtol=1e-12, atol=1e-12)
        for name in ("mean", "total", "data", "model"):
            found, wanted = getattr(after.summary(), name), getattr(before.summary(), name)
            assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_total_is_data_plus_model_and_within_its_bounds(data: st.DataObject, logits: Floats) -> None:
    weights = data.draw(weights_for(logits.shape[1]))
    summary = categorical(logits, weights).summary()
    mixture = np.average(softmax(logits, axis=-1), axis=1, weights=weights)
    assert_allclose(summary.data + summary.model, entropy(mixture, axis=-1), atol=1e-12)
    assert_allclose(summary.data + summary.model, summary.total, atol=1e-12)
    assert (summary.model >= 0).all()
    assert (summary.model <= entropy(shares(weights, logits.shape[1])) + 1e-12).all()  # no more than which member it is
    assert (summary.total <= np.log(logits.shape[2]) + 1e-12).all()


@quick
@given(logits=scores, first=st.floats(0.1, 10), second=st.floats(0.1, 10))
def test_temperatures_multiply_and_flatten(logits: Floats, first: float, second: float) -> None:
    ours = categorical(logits)
    assert_close(ours.tempered(first).tempered(second).log_probs(), ours.tempered(first * second).log_probs())
    assert_close(ours.tempered(1).log_probs(), ours.log_probs())
    assert (ours.tempered(first + 1).entropy() >= ours.tempered(first).entropy() - 1e-12).all()
    assert_allclose(ours.tempered(1e9).log_probs(), -np.log(logits.shape[2]), atol=1e-6)


@quick
@given(data=st.data(), logits=scores)
def test_all_weight_on_one_member_is_that_member(data: st.DataObject, logits: Floats) -> None:
    only = data.draw(st.integers(0, logits.shape[1] - 1))
    member = categorical(logits[:, only : only + 1])
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        ours = categorical(logits, np.eye(logits.shape[1])[only], average)
        assert_close(ours.pooled().log_probs(), member.log_probs(), rtol=1e-12, atol=1e-12)
        assert_close(ours.summary().total, member.entropy()[:, 0], rtol=1e-12, atol=1e-12)
        assert_close(ours.summary().model, torch.zeros(len(logits), dtype=torch.float64), rtol=0, atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_compensation_identity(data: st.DataObject, logits: Floats) -> None:
    """mean_m KL(p_m ‖ q) = model uncertainty + KL(p̄ ‖ q) for any q: what `diversity_explained` rests on."""
    weights = data.draw(weights_for(logits.shape[1]))
    other = data.draw(arrays(np.float64, (len(logits), 1, logits.shape[2]), elements=st.floats(-30, 30)))
    ours, q = categorical(logits, weights), categorical(other)
    left = ours.member_mean(ours.kl(q))
    assert_close(left, ours.summary().model + ours.pooled().kl(q)[:, 0], rtol=1e-10, atol=1e-10)
    p = softmax(logits, axis=-1)
    loop = [
        sum(w * rel_entr(p[b, m], softmax(other[b, 0])).sum() for m, w in enumerate(shares(weights, logits.shape[1])))
        for b in range(len(logits))
    ]
    assert_allclose(left, loop, rtol=1e-10, atol=1e-10)


def test_positions_are_independent_of_each_other() -> None:
    whole = categorical(LOGITS["positions"], WEIGHTS)
    y = torch.tensor(LABELS["positions"])
    for row, position in itertools.product(range(3), range(2)):
        one = categorical(LOGITS["positions"][row : row + 1, :, position], WEIGHTS)
        assert_close(whole.pooled().logits[row, :, position], one.pooled().logits[0])
        assert_close(whole.nll(y)[row, :, position], one.nll(y[row : row + 1, position])[0])
        assert_close(whole.summary().model[row, position], one.summary().model[0])


@either
def test_the_mixture_of_one_member_is_what_it_says(kind: str) -> None:
    """To the bit, however it is come by; and of a row that nobody answers it is not a number."""
    logits = LOGITS[kind][:, :1].astype(np.float32)
    logits[0, ..., 0] = -np.inf
    alone, weighted = (categorical(logits, weights).mixture().logits for weights in (None, np.ones(1)))
    assert torch.equal(alone, weighted)
    assert_allclose(alone.numpy(), log_softmax(logits, axis=-1), rtol=1e-6)
    unanswered = np.ones((len(logits), 1))
    unanswered[1] = 0
    answered = categorical(logits, unanswered).mixture().logits
    assert torch.equal(answered.isnan().flatten(1).all(1), torch.tensor(unanswered[:, 0] == 0))


@either
def test_what_is_made_once_is_made_anew_where_a_gradient_flows(kind: str) -> None:
    """First asked without a gradient, as by what a training only reports, and then by its loss."""
    logits = torch.tensor(LOGITS[kind], requires_grad=True)
    student, teacher = Categorical(logits), categorical(OTHERS[kind])
    with torch.no_grad():
        teacher.kl(student)
        student.summary()
    teacher.kl(student).sum().backward()
    p, q = (torch.tensor(of[kind]).softmax(-1) for of in (OTHERS, LOGITS))
    assert logits.grad is not None
    assert_close(logits.grad, q - p)
    assert teacher.mixture() is teacher.mixture()
    assert teacher.tempered(2.0).log_probs() is not teacher.log_probs()


@either
def test_what_is_made_once_follows_changes_in_place(kind: str) -> None:
    """Of a loss of the user's, to what it was given or to what it made of that."""
    weights = torch.tensor(WEIGHTS)
    members = Categorical(torch.tensor(LOGITS[kind]), weights)

    def as_new() -> None:
        fresh = Categorical(members.logits.clone(), weights.clone())
        assert torch.equal(members.log_probs(), fresh.log_probs())
        assert torch.equal(members.mixture().logits, fresh.mixture().logits)
        assert torch.equal(members.summary().model, fresh.summary().model)

    as_new()
    members.logits.mul_(0.5)
    as_new()
    weights.square_()
    as_new()
    members.log_probs().exp_()
    members.mixture().logits.zero_()
    members.summary().model.add_(1)
    as_new()
