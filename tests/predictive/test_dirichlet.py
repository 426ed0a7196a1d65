"""Dirichlet distributions against torch.distributions, SciPy, sampling and fifty digits, and where they are extreme."""

import math
import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, softmax
from scipy.stats import dirichlet as scipy_dirichlet
from scipy.stats import entropy
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.distributions import kl_divergence
from torch.testing import assert_close

from ensemble_distill.facts import Calibration
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet, DirichletFamily, digamma_gap, log_plus

Floats = NDArray[np.float64]

SHAPES = {"rows": (6, 1, 4), "positions": (3, 1, 2, 5)}  # (B, 1, K) and (B, 1, L, K)
RNG = np.random.default_rng(0)
LOGS, OTHERS = ({name: RNG.normal(1, 2, size=shape) for name, shape in SHAPES.items()} for _ in range(2))
LABELS = {"rows": RNG.integers(0, 4, (6,)), "positions": RNG.integers(0, 5, (3, 2))}

either = pytest.mark.parametrize("kind", SHAPES)


def dirichlet(log_concentration: Floats) -> Dirichlet:
    return Dirichlet(torch.tensor(log_concentration))


def theirs(ours: Dirichlet) -> torch.distributions.Dirichlet:
    return torch.distributions.Dirichlet(ours.log_concentration.exp())


def closed_form(concentration: Floats) -> tuple[Floats, Floats]:
    """Data and model uncertainty of α (..., K) as they are printed."""
    total = concentration.sum(-1, keepdims=True)
    p = concentration / total
    data = (p * (digamma(total + 1) - digamma(concentration + 1))).sum(-1)
    model = -(p * (np.log(p) - digamma(concentration + 1) + digamma(total + 1))).sum(-1)
    return data, model


# --- against other people's code --------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions() -> None:
    for kind in SHAPES:
        ours, others = dirichlet(LOGS[kind]), dirichlet(OTHERS[kind])
        assert_close(ours.kl(others), kl_divergence(theirs(ours), theirs(others)))
        assert ours.kl(others).shape == SHAPES[kind][:-1]
        assert_close(ours.kl(ours), torch.zeros(SHAPES[kind][:-1], dtype=torch.float64))


def test_kl_to_the_flat_distribution_is_scipys_entropy() -> None:
    flat = np.zeros((1, 1, 4))
    for log_concentration in LOGS["rows"]:
        found = float(dirichlet(log_concentration[None]).kl(dirichlet(flat)))
        wanted = -scipy_dirichlet.entropy(np.exp(log_concentration[0])) - gammaln(4)
        assert found == pytest.approx(wanted, rel=1e-10)


def test_log_density_is_that_of_torch_distributions() -> None:
    for kind in SHAPES:
        members = (SHAPES[kind][0], 7, *SHAPES[kind][2:])
        log_probs = torch.tensor(RNG.normal(size=members)).log_softmax(-1)
        found = dirichlet(LOGS[kind]).log_density(log_probs)
        assert found.shape == members[:-1]
        wanted = theirs(dirichlet(LOGS[kind])).log_prob(log_probs.exp())  # type: ignore[no-untyped-call]
        assert_close(found, wanted)


def test_log_density_is_scipys() -> None:
    log_probs = torch.tensor(RNG.normal(size=(6, 3, 4))).log_softmax(-1)
    found = dirichlet(LOGS["rows"]).log_density(log_probs)
    for row, m in np.ndindex(6, 3):
        p = log_probs[row, m].exp().numpy()
        wanted = scipy_dirichlet.logpdf(p / p.sum(), np.exp(LOGS["rows"][row, 0]))
        assert float(found[row, m]) == pytest.approx(wanted, rel=1e-10)


def test_uncertainties_are_the_printed_closed_forms() -> None:
    for kind in SHAPES:
        data, model = closed_form(np.exp(LOGS[kind][:, 0]))
        p = softmax(LOGS[kind][:, 0], axis=-1)
        summary = dirichlet(LOGS[kind]).summary()
        assert_allclose(summary.mean, p, rtol=1e-12)
        assert_allclose(summary.total, entropy(p, axis=-1), rtol=1e-10)
        assert_allclose(summary.data, data, rtol=1e-9)
        assert_allclose(summary.model, model, rtol=1e-9)
        assert summary.total.shape == LABELS[kind].shape


def test_uncertainties_are_those_of_an_endless_ensemble() -> None:
    """Members drawn from the distribution pool to its mean, and their uncertainties are its own."""
    torch.manual_seed(0)
    ours = dirichlet(LOGS["rows"])
    members = theirs(ours).sample((100_000,))[:, :, 0].swapaxes(0, 1)
    drawn = Categorical(members.clamp_min(1e-300).log()).summary()
    summary = ours.summary()
    for name in ("mean", "total", "data", "model"):
        assert_close(getattr(drawn, name), getattr(summary, name), rtol=0.01, atol=0.003)


def test_the_prediction_is_the_expected_probability() -> None:
    for kind in SHAPES:
        ours = dirichlet(LOGS[kind])
        expected = theirs(ours).mean
        y = torch.tensor(LABELS[kind])
        assert_close(ours.means(), expected)
        assert_close(ours.concentration, torch.tensor(np.exp(LOGS[kind])))
        for one in (ours.pooled(), ours.mixture()):
            assert isinstance(one, Categorical)
            assert_close(one.logits, expected.log())
        assert_close(ours.nll(y), -torch.distributions.Categorical(expected).log_prob(y.unsqueeze(1)))  # type: ignore[no-untyped-call]
        assert_close(ours.pooled_nll(y), ours.nll(y)[:, 0])
        assert (ours.members, ours.has_model_uncertainty) == (1, True)
        assert_close(ours.member_mean(ours.nll(y)), ours.pooled_nll(y))


def test_tempering_takes_a_root_of_the_concentration() -> None:
    for kind in SHAPES:
        ours = dirichlet(LOGS[kind])
        assert_allclose(ours.tempered(4.0).concentration, np.exp(LOGS[kind]) ** 0.25, rtol=1e-12)
        assert_allclose(ours.tempered(4.0).means(), softmax(LOGS[kind] / 4, axis=-1), rtol=1e-12)
        assert_close(ours.tempered(1.0).log_concentration, ours.log_concentration)


def test_a_spread_moves_whoever_is_drawn_by_its_factor() -> None:
    """By torch's variances; the precision is what it is without a spread, whatever the temperature."""
    for kind in SHAPES:
        ours = dirichlet(LOGS[kind] + 6)  # of a large precision, by which variances are all but divided
        moved = ours.calibrated(Calibration(spread=1.5))
        assert_close(moved.means(), ours.means())
        assert_close(
            theirs(moved).variance.sqrt() / theirs(ours).variance.sqrt(),
            torch.full_like(ours.means(), 1.5),
            rtol=1e-3,
            atol=0,
        )
        softer = ours.calibrated(Calibration(temperature=2.0))
        assert_allclose(softer.means(), softmax(LOGS[kind] / 2, axis=-1))
        assert_close(softer.concentration.sum(-1), ours.concentration.sum(-1))


def test_more_than_one_distribution_a_row_is_no_dirichlet_here() -> None:
    with pytest.raises(ValueError, match="M is 1, not 3"):
        Dirichlet(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="M is 1, not 3"):
        DirichletFamily(1.0).predictive(torch.zeros(2, 3, 4), None, "probabilities")


# --- where it is sure, and where it knows nothing -------------------------------------------------------------


def exactly(log_concentration: Floats, mp: Any) -> tuple[float, float, float]:
    """Total, data and model uncertainty of ln α (K,), from fifty digits."""
    with mp.workdps(50):
        a = [mp.exp(mp.mpf(float(value))) for value in log_concentration]
        whole = mp.fsum(a)
        p = [x / whole for x in a]
        total = -mp.fsum(share * mp.log(share) for share in p)
        data = mp.fsum(share * (mp.digamma(whole + 1) - mp.digamma(x + 1)) for share, x in zip(p, a, strict=True))
        return float(total), float(data), float(total - data)


def test_small_uncertainties_keep_their_digits() -> None:
    """At α_0 = 1e12 the model's is 1e-12 nats: the difference of two entropies would have four digits."""
    for size in [1e-8, 1e-3, 1.0, 1e3, 1e6, 1e9, 1e12]:
        mp = pytest.importorskip("mpmath")
        logs = math.log(size) + np.array([[0.0, -1, 2, 0.5], [0, 0, 0, 0], [0, -12, -9, -3]])
        summary = dirichlet(logs[:, None]).summary()
        total, data, model = (np.array(column) for column in zip(*(exactly(row, mp) for row in logs), strict=True))
        assert_allclose(summary.total, total, rtol=1e-9)
        assert_allclose(summary.data, data, rtol=1e-9, atol=1e-14)
        assert_allclose(summary.model, model, rtol=1e-9)


def test_float32_outputs_are_computed_in_float64() -> None:
    logs = torch.tensor(math.log(1e7) + RNG.normal(size=(50, 1, 10)), dtype=torch.float32)
    found, wanted = Dirichlet(logs).summary(), Dirichlet(logs.double()).summary()
    assert found.mean.dtype == found.total.dtype == found.data.dtype == found.model.dtype == torch.float32
    assert_allclose(found.model, wanted.model, rtol=1e-6)


def test_kl_and_density_of_float32_keep_their_digits() -> None:
    ours = torch.tensor(9 + RNG.normal(scale=0.1, size=(20, 1, 10)), dtype=torch.float32)
    student = ours + 0.3
    found, wanted = Dirichlet(ours).kl(Dirichlet(student)), Dirichlet(ours.double()).kl(Dirichlet(student.double()))
    assert found.dtype == torch.float32
    assert_allclose(found, wanted, rtol=1e-6)
    log_probs = ours.log_softmax(-1)
    density = Dirichlet(ours).log_density(log_probs)
    assert density.dtype == torch.float32
    assert_allclose(density, Dirichlet(ours.double()).log_density(log_probs.double()), rtol=1e-5)


def test_extreme_outputs_stay_finite_and_right() -> None:
    for offset in [0.0, 1.0]:
        for dtype in [torch.float32, torch.float64]:
            z = torch.tensor([[500.0, -500, 0], [-500, -500, -500], [500, 500, 500], [-500, -400, 500]], dtype=dtype)
            raw = z.unsqueeze(1).requires_grad_()
            ours = DirichletFamily(offset).predictive(raw, None, "probabilities")
            summary = ours.summary()
            known = math.log(3) if offset else 0.0  # all −500: with the offset a flat density, without it corners alone
            flat = float(digamma(4) - digamma(2))
            assert_allclose(summary.total.detach(), [0, math.log(3), math.log(3), 0], atol=1e-6)
            assert_allclose(summary.data.detach(), [0, flat if offset else 0, math.log(3), 0], atol=1e-6)
            assert_allclose(summary.model.detach(), [0, known - flat if offset else math.log(3), 0, 0], atol=1e-6)
            nll = ours.pooled_nll(torch.tensor([0, 1, 2, 0]))
            assert_allclose(nll.detach(), [0, math.log(3), math.log(3), 500 if offset else 1000], rtol=1e-6)
            (summary.total + summary.data + 2 * summary.model + nll).sum().backward()  # type: ignore[no-untyped-call]
            assert raw.grad is not None
            assert raw.grad.isfinite().all()


def test_no_uncertainty_is_below_zero() -> None:
    level = torch.linspace(-700, 700, 2801, dtype=torch.float64).view(-1, 1, 1)
    summary = Dirichlet(level + torch.tensor([0.0, 0.1, 2.0, -30.0], dtype=torch.float64)).summary()
    for values in (summary.total, summary.data, summary.model):
        assert (values >= 0).all()
    assert_close(summary.total, summary.data + summary.model)
    assert (summary.model.diff() <= 1e-12).all()  # the more α, the surer


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_an_offset_is_added_to_the_concentration(offset: float) -> None:
    z = RNG.normal(scale=4, size=(6, 1, 4))
    found = DirichletFamily(offset).predictive(torch.tensor(z), None, "probabilities")
    assert_allclose(found.concentration, np.exp(z) + offset, rtol=1e-12)
    data, model = closed_form(np.exp(z[:, 0]) + offset)
    assert_allclose(found.summary().data, data, rtol=1e-9)
    assert_allclose(found.summary().model, model, rtol=1e-9)
    low = DirichletFamily(offset).predictive(torch.full((1, 1, 3), -500.0), None, "probabilities")
    assert_allclose(low.concentration, offset)


# --- the gap ----------------------------------------------------------------------------------------------------


def test_the_digamma_gap_is_scipys() -> None:
    a = np.logspace(-8, 15, 20_001)
    found = digamma_gap(torch.tensor(np.log(a))).numpy()
    assert_allclose(found, digamma(a + 1) - np.log(a), rtol=0, atol=1e-11)
    assert (np.diff(found) < 0).all()


def test_the_digamma_gap_is_one_over_twice_alpha_where_psi_and_ln_cancel() -> None:
    mp = pytest.importorskip("mpmath")
    logs = np.log(np.logspace(-8, 15, 93))
    found = digamma_gap(torch.tensor(logs)).numpy()
    with mp.workdps(50):
        exact = [float(mp.digamma(mp.exp(mp.mpf(float(x))) + 1) - mp.mpf(float(x))) for x in logs]
    assert_allclose(found, exact, rtol=1e-11)
    assert_allclose(found[-1], 0.5e-15, rtol=1e-6)


def test_the_digamma_gap_beyond_what_exp_can_hold() -> None:
    far = torch.tensor([-800.0, 800.0], dtype=torch.float64, requires_grad=True)
    gap = digamma_gap(far)
    assert_allclose(gap.detach(), [800 + float(digamma(1)), 0], rtol=1e-12, atol=1e-200)
    gap.sum().backward()  # type: ignore[no-untyped-call]
    assert_close(far.grad, torch.tensor([-1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_plus_is_numpys_logaddexp(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-1e3, 1e3, 2001), torch.linspace(-30, 30, 2001)]).to(dtype).requires_grad_()
    found = log_plus(x)
    exact = np.logaddexp(0, x.detach().numpy().astype(np.float64))
    assert_allclose(found.detach(), exact, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-30)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert_close(x.grad, x.detach().sigmoid())  # at 0 as well


class Uncertainties(nn.Module):
    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        summary = DirichletFamily(1.0).predictive(raw, None, "probabilities").summary()
        return summary.mean, summary.total, summary.data, summary.model


@pytest.mark.thorough
def test_onnx_agrees_with_torch_however_large_the_outputs() -> None:
    module = Uncertainties()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 1, 3),),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch_size")},),
            input_names=["raw"],
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    rows = [[500, -500, 0], [-500] * 3, [500] * 3, [-500, -400, 500], [14] * 3, [25, 26, 27], [-20, -21, -20], [0] * 3]
    raw = torch.tensor(rows, dtype=torch.float32).unsqueeze(1)
    for found, wanted in zip(session.run(None, {"raw": raw.numpy()}), module(raw), strict=True):
        assert_allclose(found, wanted, rtol=1e-3, atol=1e-7)


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", ["kl", "log_density", "nll", "mean", "total", "data", "model"])
def test_gradients_are_those_of_finite_differences(figure: str) -> None:
    inputs = [torch.tensor(values["rows"] / 2, requires_grad=True) for values in (LOGS, OTHERS)]
    y, probs = torch.tensor(LABELS["rows"]), torch.tensor(RNG.normal(size=(6, 3, 4))).log_softmax(-1)

    def f(log_concentration: Tensor, other: Tensor) -> Tensor:
        ours = Dirichlet(log_concentration)
        if figure == "kl":
            return ours.kl(Dirichlet(other))
        if figure == "log_density":
            return ours.log_density(probs)
        found: Tensor = ours.nll(y) if figure == "nll" else getattr(ours.summary(), figure)
        return found

    assert gradcheck(f, inputs)


def test_the_gap_has_the_trigammas_gradient() -> None:
    logs = torch.linspace(-15, 30, 46, dtype=torch.float64, requires_grad=True)
    assert gradcheck(digamma_gap, [logs])


def test_positions_are_independent_of_each_other() -> None:
    whole = dirichlet(LOGS["positions"])
    y = torch.tensor(LABELS["positions"])
    for position in range(2):
        one = dirichlet(LOGS["positions"][:, :, position])
        assert_close(whole.summary().model[:, position], one.summary().model)
        assert_close(whole.pooled_nll(y)[:, position], one.pooled_nll(y[:, position]))
        other = dirichlet(OTHERS["positions"])
        assert_close(whole.kl(other)[..., position], one.kl(dirichlet(OTHERS["positions"][:, :, position])))
