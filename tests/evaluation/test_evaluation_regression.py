"""Figures of predicted numbers, and of how near a student is, against scipy and torch.distributions."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr
from torch.distributions import Normal, kl_divergence

from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.names import FIDELITY
from ensemble_distill.evaluation.rows import fidelity_rows, member_rows, prediction_rows
from ensemble_distill.predictive.gaussian import Gaussian
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.regression import Regression

TASK = Regression()

Floats = NDArray[np.float64]

N, M = 200, 4
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
EQUAL = np.full(M, 1 / M)


def numbers(seed: int = 0, members: int = M, spread: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Means and variances (N, M) about a target, and the targets (N,)."""
    rng = np.random.default_rng(seed)
    center = 50 + 5 * rng.normal(size=(N, 1))
    mean = center + spread * rng.normal(size=(N, members))
    variance = rng.uniform(0.5, 2, size=(N, members))
    y: Floats = center[:, 0] + 1.2 * rng.normal(size=N)
    return mean, variance, y


def gaussian(mean: Floats, variance: Floats, weights: Floats | None = None) -> Gaussian:
    return Gaussian(
        torch.tensor(mean), torch.tensor(np.log(variance)), None if weights is None else torch.tensor(weights)
    )


def compared(
    ensemble: tuple[Floats, Floats], student: tuple[Floats, Floats], y: Floats | None, weights: Floats | None = None
) -> Figures:
    teacher = gaussian(*ensemble, weights)
    heads = gaussian(*student, weights if student[0].shape[1] == ensemble[0].shape[1] else None)
    known = None if y is None else torch.tensor(y)
    rows = prediction_rows(TASK, teacher, known)
    found = fidelity(
        rows,
        member_rows(TASK, teacher, known),
        prediction_rows(TASK, heads, known),
        fidelity_rows(teacher, heads),
        TASK.unit(rows),
    )
    json.dumps(found, allow_nan=False)
    assert list(found) == list(FIDELITY)
    return found


def moments(mean: Floats, variance: Floats, w: Floats) -> tuple[Floats, Floats, Floats]:
    """The mixture's mean, and the two parts of its variance."""
    center = mean @ w
    return center, variance @ w, (mean - center[:, None]) ** 2 @ w


def kl(mean: Floats, variance: Floats, mean_s: Floats, variance_s: Floats) -> Floats:
    p, q = (Normal(torch.tensor(m), torch.tensor(v).sqrt()) for m, v in ((mean, variance), (mean_s, variance_s)))
    found: Floats = kl_divergence(p, q).numpy()
    return found


# --- quality ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_the_ensembles_figures_are_those_of_its_mixture(weights: Floats | None) -> None:
    mean, variance, y = numbers()
    w = EQUAL if weights is None else weights
    figures = TASK.figures(prediction_rows(TASK, gaussian(mean, variance, weights), torch.tensor(y)))
    center, data, model = moments(mean, variance, w)
    assert list(figures) == list(TASK.figures_shown)
    assert figures["rmse"] == pytest.approx(np.sqrt(np.mean((y - center) ** 2)))
    density = norm(mean, np.sqrt(variance)).pdf(y[:, None]) @ w
    assert figures["nll"] == pytest.approx(-np.log(density).mean())
    low, high = norm(center, np.sqrt(data + model)).interval(0.95)
    assert figures["coverage95"] == pytest.approx(np.mean((low <= y) & (y <= high)))
    assert 0.8 < np.mean((low <= y) & (y <= high)) < 1
    assert figures["data_uncertainty"] == pytest.approx(data.mean())
    assert figures["model_uncertainty"] == pytest.approx(model.mean())
    assert figures["total_uncertainty"] == pytest.approx((data + model).mean())


def test_the_member_is_the_mean_over_members_of_each_ones_own() -> None:
    mean, variance, y = numbers(spread=3)
    found = TASK.figures(member_rows(TASK, gaussian(mean, variance), torch.tensor(y)))
    each = [
        TASK.figures(prediction_rows(TASK, gaussian(mean[:, [m]], variance[:, [m]]), torch.tensor(y))) for m in range(M)
    ]
    for name in TASK.figures_shown:
        own = [figures[name] for figures in each]
        if name == "model_uncertainty":
            assert found[name] is None
            assert own == [None] * M
        else:
            assert found[name] == pytest.approx(np.mean(np.array(own, float))), name
    together = np.sqrt(((y[:, None] - mean) ** 2).mean())
    assert found["rmse"] is not None
    assert found["rmse"] < together - 1e-4, "the mean of roots, not the root of a mean"


def test_a_coverage_by_hand() -> None:
    mean, variance, y = np.zeros((4, 1)), np.full((4, 1), 4.0), np.array([3.9, -3.9, 3.93, -4.0])
    figures = TASK.figures(prediction_rows(TASK, gaussian(mean, variance), torch.tensor(y)))
    assert figures["coverage95"] == 0.5  # 1.96 × 2 = 3.92
    assert figures["rmse"] == pytest.approx(np.sqrt((y**2).mean()))


def test_without_targets_only_uncertainties_are_told() -> None:
    mean, variance, _ = numbers()
    unknown = {"rmse", "nll", "coverage95"}
    figures = TASK.figures(prediction_rows(TASK, gaussian(mean, variance), None))
    assert {name for name, value in figures.items() if value is None} == unknown
    members = TASK.figures(member_rows(TASK, gaussian(mean, variance), None))
    assert {name for name, value in members.items() if value is None} == {*unknown, "model_uncertainty"}
    single = TASK.figures(prediction_rows(TASK, gaussian(mean[:, :1], variance[:, :1]), None))
    assert single["model_uncertainty"] is None
    assert single["total_uncertainty"] == single["data_uncertainty"]


# --- fidelity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_every_figure_is_its_loop(weights: Floats | None) -> None:
    w = EQUAL if weights is None else weights
    mean, variance, y = numbers()
    heads = 0.7 * mean + 0.3 * numbers(1)[0], 1.3 * variance
    found = compared((mean, variance), heads, y, weights)
    center, data, model = moments(mean, variance, w)
    center_s, data_s, model_s = moments(*heads, w)
    total_s = data_s + model_s
    rows = fidelity_rows(gaussian(mean, variance, weights), gaussian(*heads, weights))
    assert_allclose(rows["member_kl"], kl(mean, variance, *heads) @ w)
    assert_allclose(rows["collapsed_kl"], kl(mean, variance, center_s[:, None], total_s[:, None]) @ w)
    assert_allclose(rows["mean_kl"], kl(center, data + model, center_s, total_s))
    # the divisor of the diversity explained is the ensemble's own spread and the distance of the means, as for classes
    own_spread = kl(mean, variance, center[:, None], (data + model)[:, None]) @ w
    assert_allclose(rows["collapsed_kl"], own_spread + rows["mean_kl"])
    assert found["member_kl"] == pytest.approx(rows["member_kl"].mean())
    assert found["mean_kl"] == pytest.approx(rows["mean_kl"].mean())
    assert found["diversity_explained"] == pytest.approx(1 - rows["member_kl"].mean() / rows["collapsed_kl"].mean())
    p, q = mean - center[:, None], heads[0] - center_s[:, None]
    assert found["deviation_correlation"] == pytest.approx((p * q).sum() / np.sqrt((p**2).sum() * (q**2).sum()))
    assert found["model_uncertainty_l1"] == pytest.approx(np.abs(model_s - model).sum() / model.sum())
    assert found["model_uncertainty_ratio"] == pytest.approx(model_s.mean() / model.mean())
    assert found["model_uncertainty_spearman"] == pytest.approx(spearmanr(model_s, model).statistic)
    control = spearmanr(data_s + model_s, model).statistic
    assert found["model_uncertainty_spearman_control"] == pytest.approx(control)
    assert found["agreement"] is None, "numbers have no classes to agree on"
    own = -norm(mean, np.sqrt(variance)).logpdf(y[:, None]).mean()
    nll = {
        name: -np.log(norm(m, np.sqrt(v)).pdf(y[:, None]) @ w).mean()
        for name, (m, v) in {"ensemble": (mean, variance), "student": heads}.items()
    }
    assert found["gap_closed"] == pytest.approx((own - nll["student"]) / (own - nll["ensemble"]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    offset=st.floats(-3, 3),
    stretch=st.floats(0.2, 5),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    weighted=st.booleans(),
)
def test_heads_collapsed_to_one_prediction_explain_nothing_in_any_unit(
    seed: int, offset: float, stretch: float, scale: float, weighted: bool
) -> None:
    mean, variance, y = numbers(seed)
    common = np.repeat(mean[:, :1] + offset, M, axis=1), np.repeat(stretch * variance[:, :1], M, axis=1)
    found = compared(
        (scale * mean, scale**2 * variance),
        (scale * common[0], scale**2 * common[1]),
        scale * y,
        WEIGHTS if weighted else None,
    )
    assert found["diversity_explained"] == pytest.approx(0, abs=1e-9)
    assert found["model_uncertainty_ratio"] == pytest.approx(0, abs=1e-9)
    assert found["model_uncertainty_l1"] == pytest.approx(1, abs=1e-9)
    assert found["deviation_correlation"] is None
    assert found["model_uncertainty_spearman"] is None


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_no_figure_of_fidelity_depends_on_the_targets_unit(unit: float) -> None:
    (mean, variance, y), (own, spread, _) = numbers(), numbers(1)
    wanted = compared((mean, variance), (own, spread), y)
    found = compared((unit * mean, unit**2 * variance), (unit * own, unit**2 * spread), unit * y)
    assert [name for name, value in found.items() if value is None] == ["agreement"]
    for name in found.keys() - {"agreement"}:
        assert found[name] == pytest.approx(wanted[name], rel=1e-6), name


def test_a_perfect_student_explains_everything_in_any_unit() -> None:
    for scale in [1e-6, 1.0, 1e6]:
        mean, variance, y = numbers()
        ensemble = scale * mean, scale**2 * variance
        found = compared(ensemble, ensemble, scale * y, WEIGHTS)
        for name in ("diversity_explained", "deviation_correlation", "gap_closed", "model_uncertainty_ratio"):
            assert found[name] == pytest.approx(1), name
        for name in ("member_kl", "mean_kl", "model_uncertainty_l1"):
            assert found[name] == pytest.approx(0, abs=1e-12), name
        assert found["model_uncertainty_spearman"] == pytest.approx(1)


def test_identical_members_leave_only_rounding_and_no_figure_is_made_of_it() -> None:
    for scale in [1e-6, 1.0, 1e6]:
        mean, variance, y = numbers(members=1)
        clones = scale * mean.repeat(M, axis=1), scale**2 * variance.repeat(M, axis=1)
        found = compared(clones, clones, scale * y, WEIGHTS)
        for name in ("diversity_explained", "deviation_correlation", "model_uncertainty_l1", "model_uncertainty_ratio"):
            assert found[name] is None, name
        assert found["model_uncertainty_spearman"] is None
        assert found["gap_closed"] is None


def test_a_single_head_keeps_only_what_needs_no_diversity() -> None:
    mean, variance, y = numbers()
    found = compared((mean, variance), (mean[:, :1], variance[:, :1]), y)
    assert {name for name, value in found.items() if value is not None} == {"mean_kl", "gap_closed"}
    assert compared((mean, variance), (mean[:, :1], variance[:, :1]), None)["gap_closed"] is None
