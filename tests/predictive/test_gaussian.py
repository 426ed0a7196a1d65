"""Normal distributions against torch.distributions, quadrature and NumPy, and the identities they obey."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import norm
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from ensemble_distill.predictive.gaussian import Gaussian, GaussianFamily
from ensemble_distill.tasks.regression import COVERED

Floats = NDArray[np.float64]

SHAPES = {"rows": (5, 4), "positions": (3, 4, 2)}  # (B, M) and (B, M, L)
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
RNG = np.random.default_rng(0)
MEANS, OTHERS = ({name: RNG.normal(scale=3, size=shape) for name, shape in SHAPES.items()} for _ in range(2))
LOGS, OTHER_LOGS = ({name: RNG.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(2))
TARGETS = {"rows": RNG.normal(scale=3, size=5), "positions": RNG.normal(scale=3, size=(3, 2))}

either = pytest.mark.parametrize("kind", SHAPES)
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])


def gaussian(mean: Floats, log_variance: Floats, weights: Floats | None = None) -> Gaussian:
    return Gaussian(torch.tensor(mean), torch.tensor(log_variance), None if weights is None else torch.tensor(weights))


def normal(ours: Gaussian) -> Normal:
    return Normal(ours.mean, (ours.log_variance / 2).exp())


def shares(weights: Floats | None, members: int = 4) -> Floats:
    return np.full(members, 1 / members) if weights is None else weights / weights.sum()


def on_grid(ours: Gaussian, row: int, grid: Floats) -> Floats:
    """The density of one row's mixture at every point of the grid."""
    mean, log_variance = (values[row : row + 1].expand(len(grid), -1) for values in (ours.mean, ours.log_variance))
    copies = Gaussian(mean, log_variance, ours.weights)
    density: Floats = (-copies.pooled_nll(torch.tensor(grid))).exp().numpy()
    return density


GRID = np.linspace(-60, 60, 24_001)  # the widest member has a standard deviation of 3


# --- against other people's code --------------------------------------------------------------------------


def test_kl_and_nll_are_those_of_torch_distributions() -> None:
    for kind in SHAPES:
        ours, others = gaussian(MEANS[kind], LOGS[kind]), gaussian(OTHERS[kind], OTHER_LOGS[kind])
        y = torch.tensor(TARGETS[kind])
        assert_close(ours.kl(others), kl_divergence(normal(ours), normal(others)))
        assert_close(ours.nll(y), -normal(ours).log_prob(y.unsqueeze(1)))  # type: ignore[no-untyped-call]
        assert ours.kl(others).shape == ours.nll(y).shape == SHAPES[kind]
        assert ours.means().shape == (*SHAPES[kind], 1)
        assert_close(ours.means()[..., 0], ours.mean)


def test_one_distribution_is_compared_with_every_member() -> None:
    for kind in SHAPES:
        members, one = gaussian(MEANS[kind], LOGS[kind]), gaussian(OTHERS[kind][:, :1], OTHER_LOGS[kind][:, :1])
        assert_close(members.kl(one), kl_divergence(normal(members), normal(one)))
        assert_close(one.kl(members), kl_divergence(normal(one), normal(members)))
        assert one.kl(members).shape == SHAPES[kind]


def test_the_mixtures_density_by_quadrature() -> None:
    """It is one distribution, its moments are the summary's, and its −ln at y is the NLL of a plain loop."""
    for weights in [None, WEIGHTS]:
        ours = gaussian(MEANS["rows"], LOGS["rows"], weights)
        summary = ours.summary()
        for row in range(5):
            density = on_grid(ours, row, GRID)
            assert trapezoid(density, GRID) == pytest.approx(1, rel=1e-10)
            mean = trapezoid(density * GRID, GRID)
            assert float(summary.mean[row]) == pytest.approx(mean, rel=1e-9)
            assert float(summary.total[row]) == pytest.approx(trapezoid(density * (GRID - mean) ** 2, GRID), rel=1e-9)
        scale = np.exp(LOGS["rows"] / 2)
        likelihood = (norm.pdf(TARGETS["rows"][:, None], MEANS["rows"], scale) * shares(weights)).sum(1)
        assert_allclose(ours.pooled_nll(torch.tensor(TARGETS["rows"])), -np.log(likelihood), rtol=1e-12)


def test_total_is_the_mean_variance_and_the_variance_of_the_means() -> None:
    for weights in [None, WEIGHTS]:
        for kind in SHAPES:
            summary = gaussian(MEANS[kind], LOGS[kind], weights).summary()
            mean = np.average(MEANS[kind], axis=1, weights=shares(weights))
            model = np.average((MEANS[kind] - mean[:, None]) ** 2, axis=1, weights=shares(weights))
            assert_allclose(summary.mean, mean, rtol=1e-12)
            assert_allclose(summary.data, np.average(np.exp(LOGS[kind]), axis=1, weights=shares(weights)), rtol=1e-12)
            assert_allclose(summary.model, model, rtol=1e-12)
            assert_allclose(summary.total, summary.data + summary.model, rtol=1e-12)
            if weights is None:
                assert_allclose(summary.model, MEANS[kind].var(axis=1), rtol=1e-12)  # divides by M, not by M − 1
            assert summary.mean.shape == summary.total.shape == summary.data.shape == TARGETS[kind].shape


def test_what_is_pooled_has_the_mixtures_moments() -> None:
    for weights in [None, WEIGHTS]:
        for kind in SHAPES:
            ours = gaussian(MEANS[kind], LOGS[kind], weights)
            once, summary = ours.pooled(), ours.summary()
            assert (once.members, once.weights, once.has_model_uncertainty) == (1, None, False)
            assert ours.has_model_uncertainty
            assert_close(once.mean[:, 0], summary.mean)
            assert_close(once.log_variance[:, 0].exp(), summary.total)
            assert_close(once.summary().total, summary.total)
            assert_close(once.summary().model, torch.zeros_like(summary.model))
            assert_close(ours.mixture().log_variance, once.log_variance)
            y = torch.tensor(TARGETS[kind])
            assert not torch.allclose(once.nll(y)[:, 0], ours.pooled_nll(y))  # the NLL is the mixture's own


def test_tempering_takes_the_densitys_root() -> None:
    ours = gaussian(MEANS["rows"][:, :1], LOGS["rows"][:, :1])
    for temperature in (0.5, 3.0):
        tempered = ours.tempered(temperature)
        for row in range(5):
            root = on_grid(ours, row, GRID) ** (1 / temperature)
            assert_allclose(on_grid(tempered, row, GRID), root / trapezoid(root, GRID), rtol=1e-9, atol=1e-30)


def test_coverage_is_of_ninety_five_percent() -> None:
    assert norm.cdf(COVERED) - norm.cdf(-COVERED) == pytest.approx(0.95, abs=1e-15)


def test_the_members_mean_is_by_their_weights() -> None:
    values = RNG.normal(size=SHAPES["positions"])
    ours = gaussian(MEANS["positions"], LOGS["positions"], WEIGHTS * 10)
    assert_allclose(ours.member_mean(torch.tensor(values)), np.average(values, axis=1, weights=WEIGHTS))


# --- numbers far from 0, and near each other ----------------------------------------------------------------


def test_float32_keeps_the_spread_of_members_about_454() -> None:
    """A power plant's output in MW: one float32 step there is 3e-5."""
    for weights in [None, WEIGHTS]:
        for spread, rtol in [(0.05, 1e-5), (0.001, 1e-4)]:
            means = RNG.normal(454, spread, size=(1000, 4)).astype(np.float32)
            exact = means.astype(np.float64)
            middle = np.average(exact, axis=1, weights=shares(weights))[:, None]
            ours = Gaussian(
                torch.tensor(means), torch.zeros(1000, 4), None if weights is None else torch.tensor(weights)
            )
            wanted = np.average((exact - middle) ** 2, axis=1, weights=shares(weights))
            assert_allclose(ours.summary().model, wanted, rtol=rtol)
            assert_allclose(ours.summary().mean, middle[:, 0], rtol=1.2e-7)


def test_clones_far_from_zero_have_no_model_uncertainty() -> None:
    for members in [3, 7, 50]:
        clones = torch.linspace(454, 455, 101).unsqueeze(1).expand(-1, members)
        summary = Gaussian(clones, torch.zeros_like(clones)).summary()
        assert summary.model.max() < 1e-15
        assert torch.equal(summary.mean, clones[:, 0])


def test_kl_keeps_its_digits_where_variances_nearly_agree() -> None:
    for sign in [-1, 1]:
        for dtype, apart in [(torch.float64, 1e-6), (torch.float32, 1e-3)]:
            zero, ratio = torch.zeros(1, 1, dtype=dtype), torch.full((1, 1), sign * apart, dtype=dtype)
            r = float(ratio)
            series = sum(r**n / math.factorial(n) for n in range(2, 8)) / 2  # of (eʳ − 1 − r) / 2
            assert_allclose(
                Gaussian(zero, ratio).kl(Gaussian(zero, zero)), series, rtol=1e-3 if dtype == torch.float32 else 1e-9
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_never_below_zero(dtype: torch.dtype) -> None:
    size = torch.logspace(-12, 1.5, 50_001, dtype=dtype)
    ratios = torch.cat([size, -size]).unsqueeze(1)
    zero = torch.zeros_like(ratios)
    assert (Gaussian(zero, ratios).kl(Gaussian(zero, zero)) >= 0).all()
    assert (Gaussian(zero, ratios).kl(Gaussian(zero, ratios)) == 0).all()


def test_a_target_far_from_every_member_has_a_finite_nll() -> None:
    ours = Gaussian(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2))  # both densities are 0 in float32
    assert_allclose(ours.pooled_nll(torch.tensor([1000.0])), norm.logpdf(999) * -1 + math.log(2), rtol=1e-6)


# --- gradients ----------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[Gaussian, Gaussian, Tensor], Tensor]] = {
    "kl": lambda p, q, y: p.kl(q),
    "nll": lambda p, q, y: p.nll(y),
    "pooled_nll": lambda p, q, y: p.pooled_nll(y),
    "total": lambda p, q, y: p.summary().total,
    "model": lambda p, q, y: p.summary().model,
    "mean": lambda p, q, y: p.summary().mean,
    "mixture": lambda p, q, y: p.mixture().kl(q),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_gradients_are_those_of_finite_differences(figure: str) -> None:
    inputs = [torch.tensor(v["rows"], requires_grad=True) for v in (MEANS, LOGS, OTHERS, OTHER_LOGS)]
    y, weights = torch.tensor(TARGETS["rows"]), torch.tensor(WEIGHTS)

    def f(mean: Tensor, log: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
        return FIGURES[figure](Gaussian(mean, log, weights), Gaussian(other, other_log), y)

    assert gradcheck(f, inputs)


@pytest.mark.parametrize("figure", FIGURES)
def test_gradients_are_finite_at_extreme_variances(figure: str) -> None:
    logs = torch.tensor([[-30.0, 30.0, 0.0], [30.0, -30.0, 30.0], [-30.0] * 3], requires_grad=True)
    mean = torch.tensor([[0.0, 10.0, -10.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]], requires_grad=True)
    other_log, other = logs.detach().flip(1).requires_grad_(), torch.zeros(3, 3, requires_grad=True)
    found = FIGURES[figure](Gaussian(mean, logs), Gaussian(other, other_log), torch.tensor([0.0, 100.0, 2.5]))
    assert found.isfinite().all()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert all(v.grad is None or v.grad.isfinite().all() for v in (mean, logs, other, other_log))
    assert mean.grad is not None


def test_a_member_of_no_weight_says_nothing_and_spoils_nothing() -> None:
    mean = torch.tensor(MEANS["rows"][:, :3], requires_grad=True)
    logs = torch.tensor(LOGS["rows"][:, :3])
    y = torch.tensor(TARGETS["rows"])
    ours = Gaussian(mean, logs, torch.tensor([1.0, 0.0, 1.0]))
    without = Gaussian(mean.detach()[:, ::2], logs[:, ::2])
    assert_close(ours.pooled_nll(y), without.pooled_nll(y))
    assert_close(ours.summary().total, without.summary().total)
    ours.pooled_nll(y).sum().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert mean.grad.isfinite().all()
    assert (mean.grad[:, 1] == 0).all()


# --- identities ---------------------------------------------------------------------------------------------

means = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-20, 20))
quick = settings(max_examples=60, deadline=None, derandomize=True)


@quick
@given(data=st.data(), mean=means)
def test_compensation_identity(data: st.DataObject, mean: Floats) -> None:
    """mean_m KL(p_m ‖ q) = KL(moments ‖ q) + mean_m KL(p_m ‖ moments): of normal q the moments are the nearest."""
    like = arrays(np.float64, mean.shape, elements=st.floats(-3, 3))
    members = mean.shape[1]
    weights = data.draw(st.none() | arrays(np.float64, members, elements=st.floats(0.01, 1)))
    ours = gaussian(mean, data.draw(like), weights)
    q = gaussian(data.draw(like)[:, :1], data.draw(like)[:, :1])
    left = ours.member_mean(ours.kl(q))
    right = ours.mixture().kl(q)[:, 0] + ours.member_mean(ours.kl(ours.mixture()))
    assert_close(left, right, rtol=1e-9, atol=1e-9)


@quick
@given(mean=means, first=st.floats(0.1, 10), second=st.floats(0.1, 10))
def test_temperatures_multiply(mean: Floats, first: float, second: float) -> None:
    ours = gaussian(mean, mean / 10)
    assert_close(ours.tempered(first).tempered(second).log_variance, ours.tempered(first * second).log_variance)
    assert_close(ours.tempered(first).mean, ours.mean)
    assert_close(ours.tempered(1.0).log_variance, ours.log_variance)


@quick
@given(mean=means, shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_another_unit_changes_variances_by_its_square_and_no_divergence(
    mean: Floats, shift: float, scale: float
) -> None:
    ours = gaussian(mean, mean / 10)
    moved = gaussian(shift + scale * mean, mean / 10 + 2 * np.log(scale))
    for name in ("total", "data", "model"):
        found, wanted = getattr(moved.summary(), name), getattr(ours.summary(), name) * scale**2
        assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    assert_allclose(moved.kl(moved.mixture()), ours.kl(ours.mixture()), rtol=1e-8, atol=1e-8)


# --- what a head emits --------------------------------------------------------------------------------------


def test_a_head_emits_mean_and_log_variance_in_units_about_a_center() -> None:
    numbers = RNG.normal(size=(5, 4, 2))
    raw = torch.tensor(numbers)
    family = GaussianFamily(center=454.0, scale=17.0)
    found = family.predictive(raw, torch.tensor(WEIGHTS), "logits")
    y = RNG.normal(454, 17, size=5)
    wanted = norm.logpdf((y[:, None] - 454) / 17, numbers[..., 0], np.exp(numbers[..., 1] / 2)) - np.log(17)
    assert_allclose(found.nll(torch.tensor(y)), -wanted, rtol=1e-10)
    assert_allclose(found.summary().mean, 454 + 17 * np.average(numbers[..., 0], axis=1, weights=WEIGHTS))
    plain = GaussianFamily().predictive(raw, None, "probabilities")
    assert torch.equal(plain.mean, raw[..., 0])
    assert torch.equal(plain.log_variance, raw[..., 1])
    assert family.width(0) == family.width(10) == 2


def test_positions_are_independent_of_each_other() -> None:
    whole = gaussian(MEANS["positions"], LOGS["positions"], WEIGHTS)
    y = torch.tensor(TARGETS["positions"])
    for position in range(2):
        one = gaussian(MEANS["positions"][..., position], LOGS["positions"][..., position], WEIGHTS)
        assert_close(whole.pooled_nll(y)[:, position], one.pooled_nll(y[:, position]))
        assert_close(whole.summary().model[:, position], one.summary().model)
        assert_close(whole.pooled().log_variance[..., position], one.pooled().log_variance)
