"""Figures where members do not answer every row, each against loops over rows and members in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import entropy, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from ensemble_distill.evaluation.controls import controls
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.fit import fit
from ensemble_distill.evaluation.halves import halves_figures, halves_rows
from ensemble_distill.evaluation.ladder import Climb
from ensemble_distill.evaluation.offsets import Offsets
from ensemble_distill.evaluation.ood import detection
from ensemble_distill.evaluation.rows import fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.worth import scaled_l1
from ensemble_distill.facts import Calibration
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.answered import matched, those_who_answer
from ensemble_distill.runtime.keys import normals
from ensemble_distill.tasks import open_task
from ensemble_distill.tasks.classification import Classification, expected_calibration_error
from ensemble_distill.tasks.figures import row_mean
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.regression import Regression

Floats = NDArray[np.float64]

N, M, K = 60, 4, 3
TASK = Classification(("a", "b", "c"))
FAMILY = open_family("categorical")


def softmax(z: Floats) -> Floats:
    p: Floats = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return p


def silenced(outputs: Floats, least: int = 1, seed: int = 0) -> Floats:
    """Outputs of which at least so many members answer each row."""
    rng = np.random.default_rng(seed)
    there = rng.random(outputs.shape[:2]) < 0.5
    for row in there:
        row[rng.permutation(M)[:least]] = True
    found: Floats = np.where(there[..., None], outputs, np.nan)
    return found


def alone(outputs: Floats) -> Floats:
    """Outputs of which one member answers each row, in turn."""
    there = np.arange(M) == (np.arange(len(outputs)) % M)[:, None]
    found: Floats = np.where(there[..., None], outputs, np.nan)
    return found


def drawn(seed: int, spread: float = 1.0) -> Floats:
    rng = np.random.default_rng(seed)
    found: Floats = 2 * rng.normal(size=(N, 1, K)) + spread * rng.normal(size=(N, M, K))
    return found


def labels() -> NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, K, N)


def pooling(outputs: torch.Tensor, some: Any = None) -> Any:
    at = list(range(M)) if some is None else list(some)
    said = outputs[:, at]
    return FAMILY.predictive(
        *(those_who_answer(said, None) if outputs.isnan().any() else (said, None)), "probabilities"
    )


def measured(ensemble: Floats, student: Floats) -> tuple[Any, ...]:
    """The rows of `fidelity`: of the ensemble, the mean member, the student's compared heads, and of both."""
    y = torch.tensor(labels())
    said, heads = pooling(torch.tensor(ensemble)), FAMILY.predictive(torch.tensor(student), None, "probabilities")
    return (
        prediction_rows(TASK, said, y),
        member_rows(TASK, said, y),
        prediction_rows(TASK, matched(heads, said), y),
        fidelity_rows(said, heads),
    )


def test_fidelity() -> None:
    z, s, y = silenced(drawn(0)), drawn(1, 0.7), labels()
    found = fidelity(*measured(z, s))
    p, q = softmax(z), softmax(s)
    whole = q.mean(1)  # of all heads: what a collapsed student says
    mean_kl, member_kl, collapsed, agree, deviations = [], [], [], [], []
    uncertain, nlls = [], []
    for row in range(N):
        some = np.flatnonzero(~np.isnan(z[row, :, 0]))
        ours, theirs = p[row, some], q[row, some]
        a, b = ours.mean(0), theirs.mean(0)
        mean_kl.append((a * np.log(a / b)).sum())
        member_kl.append((ours * np.log(ours / theirs)).sum(1).mean())
        collapsed.append((ours * np.log(ours / whole[row])).sum(1).mean())
        agree.append(a.argmax() == b.argmax())
        if len(some) > 1:
            d, e = ours - a, theirs - b
            deviations.append([(d * e).sum(), (d * d).sum(), (e * e).sum()])
            mu = [-(c * np.log(c)).sum() + (each * np.log(each)).sum(1).mean() for c, each in ((a, ours), (b, theirs))]
            uncertain.append([*mu, -(b * np.log(b)).sum()])
            nlls.append([-np.log(a[y[row]]), -np.log(b[y[row]]), -np.log(ours[:, y[row]]).mean()])
    product, own, other = np.mean(deviations, 0)
    mu, mine, total = np.array(uncertain).T
    nll, nll_student, nll_member = np.mean(nlls, 0)
    wanted = {
        "mean_kl": np.mean(mean_kl),
        "member_kl": np.mean(member_kl),
        "collapsed_kl": np.mean(collapsed),
        "diversity_explained": 1 - np.mean(member_kl) / np.mean(collapsed),
        "deviation_correlation": product / np.sqrt(own * other),
        "agreement": np.mean(agree),
        "model_uncertainty_l1": np.abs(mine - mu).mean() / mu.mean(),
        "model_uncertainty_ratio": mine.mean() / mu.mean(),
        "model_uncertainty_spearman": spearmanr(mine, mu)[0],
        "model_uncertainty_spearman_control": spearmanr(total, mu)[0],
        "gap_closed": (nll_member - nll_student) / (nll_member - nll),
    }
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_student_that_is_the_ensemble_is_perfect_on_the_rows_that_members_answer() -> None:
    z = drawn(0)
    found = fidelity(*measured(silenced(z), z))
    perfect = {"mean_kl": 0, "member_kl": 0, "diversity_explained": 1, "deviation_correlation": 1, "agreement": 1}
    perfect |= {"model_uncertainty_l1": 0, "model_uncertainty_ratio": 1, "gap_closed": 1}
    assert {name: found[name] for name in perfect} == pytest.approx(perfect, abs=1e-9)


def test_where_one_member_answers_each_row_nothing_is_said_of_how_members_differ_on_one() -> None:
    z, s = alone(drawn(0)), drawn(1)
    rows = measured(z, s)
    found = fidelity(*rows)
    absent = {name for name, value in found.items() if value is None}
    assert absent == {
        "deviation_correlation",
        "model_uncertainty_l1",
        "model_uncertainty_ratio",
        "model_uncertainty_spearman",
        "model_uncertainty_spearman_control",
        "gap_closed",
    }
    p, q = softmax(z), softmax(s)
    at = np.arange(N), np.arange(N) % M
    own = (p[at] * np.log(p[at] / q[at])).sum(1).mean()
    mean = (p[at] * np.log(p[at] / q.mean(1))).sum(1).mean()
    assert (found["member_kl"], found["mean_kl"]) == pytest.approx((own, own))
    assert found["diversity_explained"] == pytest.approx(1 - own / mean)
    assert TASK.figures(rows[0])["model_uncertainty"] is None
    ensemble, _, student, both = rows
    halves = halves_rows([[pooling(torch.tensor(z), half) for half in ((0, 1), (2, 3))]])
    for told in controls(ensemble, student, both, None, halves).values():
        assert all(value is None for name, value in told.items() if name.startswith("model_uncertainty"))
    climb = Climb((0, 1, 2, 3), N, K)
    climb.add(pooling(torch.tensor(z)), torch.tensor(labels()))
    assert climb.ladder() is None


def test_a_member_s_own_figures_are_of_the_rows_that_it_answers() -> None:
    z, y = silenced(drawn(0)), labels()
    z[:, 3] = np.nan  # one answers none
    z[np.isnan(z).all((1, 2)), 0] = 1.0
    p = softmax(z)
    accuracy, nll, ece, entropy = [], [], [], []
    for member in range(3):
        there = ~np.isnan(z[:, member, 0])
        own, true = p[there, member], y[there]
        right = own.argmax(1) == true
        accuracy.append(right.mean())
        nll.append(-np.log(own[np.arange(len(own)), true]).mean())
        ece.append(expected_calibration_error(own.max(1), right))
        entropy.append(-(own * np.log(own)).sum(1).mean())
    found = TASK.figures(member_rows(TASK, pooling(torch.tensor(z)), torch.tensor(y)))
    wanted = {"accuracy": accuracy, "nll": nll, "ece": ece, "total_uncertainty": entropy}
    assert {name: found[name] for name in wanted} == pytest.approx({name: np.mean(v) for name, v in wanted.items()})


def test_figures_of_targets_and_of_labels() -> None:
    rng = np.random.default_rng(3)
    there = rng.random((N, M)) < 0.6
    there[:, 0] = True
    raw = np.where(there[..., None], rng.normal(size=(N, M, 2)), np.nan)
    y = rng.normal(size=N)
    said = open_family("gaussian").predictive(*those_who_answer(torch.tensor(raw), None), "probabilities")
    found = Regression().figures(member_rows(Regression(), said, torch.tensor(y)))
    rmse = [np.sqrt(np.mean((raw[there[:, m], m, 0] - y[there[:, m]]) ** 2)) for m in range(M)]
    within = np.abs(raw[..., 0] - y[:, None]) <= 1.959963984540054 * np.exp(raw[..., 1] / 2)
    assert found["rmse"] == pytest.approx(np.mean(rmse))
    assert found["coverage95"] == pytest.approx(np.mean([within[there[:, m], m].mean() for m in range(M)]))
    task, z = MultiLabel(("a", "b", "c")), np.where(there[..., None], rng.normal(size=(N, M, K)), np.nan)
    truth = rng.integers(0, 2, (N, K))
    labeled = open_family("bernoulli").predictive(*those_who_answer(torch.tensor(z), None), "probabilities")
    told = task.figures(member_rows(task, labeled, torch.tensor(truth)))
    each = [
        np.mean([average_precision_score(truth[there[:, m], k], z[there[:, m], m, k]) for k in range(K)])
        for m in range(M)
    ]
    assert told["macro_average_precision"] == pytest.approx(np.mean(each))
    pooled = task.figures(prediction_rows(task, labeled, torch.tensor(truth)))
    several = there.sum(1) > 1
    assert pooled["model_uncertainty.a"] == pytest.approx(float(labeled.each().model[several, 0].mean()))  # type: ignore[attr-defined]


def test_a_mean_of_members_is_of_each_one_s_own() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    assert row_mean(values) == pytest.approx((2 + 5) / 2)
    assert row_mean(np.full((2, 2), np.nan)) is None
    assert row_mean(np.array([[1.0, 2.0], [3.0, 6.0]])) == pytest.approx(3.0)


@pytest.mark.parametrize("least", [1, 3])
def test_the_ladder_takes_the_first_members_who_answer(least: int) -> None:
    """Members are equal, so that whoever stands in counts alike: what is told is how many of a row's there are."""
    z, y = silenced(drawn(0), least), labels()
    climb = Climb(tuple(range(M)), N, K)
    for start in range(0, N, 16):
        rows = slice(start, start + 16)
        climb.add(pooling(torch.tensor(z[rows])), torch.tensor(y[rows]))
    found = climb.ladder()
    assert found is not None
    assert found.nll is not None
    count, p = (~np.isnan(z[..., 0])).sum(1), softmax(z)
    assert len(found.mean_kl) == count.max()
    whole = np.nanmean(p, 1)
    assert found.mean_kl[-1] == pytest.approx(0, abs=1e-12)
    assert found.nll[-1] == pytest.approx(-np.log(whole[np.arange(N), y]).mean())
    # of single members each of M is asked on every row, or the one that stands in for it
    rows = np.arange(N)
    turns = [climb._turns[m] for m in range(M)]
    first = [[next(m for m in turn if not np.isnan(z[row, m, 0])) for row in rows] for turn in turns]
    own = [-np.log(p[rows, of, y]).mean() for of in first]
    assert found.nll[0] == pytest.approx(np.mean(own))
    kl = [(whole * np.log(whole / p[rows, of])).sum(1).mean() for of in first]
    assert found.mean_kl[0] == pytest.approx(np.mean(kl))
    assert found.model_uncertainty_l1 is not None
    assert (found.model_uncertainty_l1[0], found.model_uncertainty_l1[-1]) == pytest.approx((1, 0), abs=1e-6)

    def apart(each: Floats) -> float:
        """The model uncertainty of members (k, K)."""
        return float(entropy(each.mean(0)) - entropy(each, axis=-1).mean())

    several = count > 1
    all_of_them = np.array([apart(p[row][~np.isnan(z[row, :, 0])]) for row in rows])[several]
    pairs = []
    for turn in (turn for some, turn in zip(climb._parts, climb._turns, strict=True) if len(some) == 2):
        taken = [[m for m in turn if not np.isnan(z[row, m, 0])][:2] for row in rows]
        pairs.append(scaled_l1(np.array([apart(p[row, of]) for row, of in enumerate(taken)])[several], all_of_them))
    assert found.model_uncertainty_l1[1] == pytest.approx(np.mean(pairs), rel=1e-5)


def test_the_ladder_ends_at_the_most_members_that_answer_a_row_and_anyone_may_stand_in() -> None:
    z = drawn(0)
    for row in range(N):
        z[row, [row % M, (row + 1) % M]] = np.nan
    climb = Climb(tuple(range(M)), N, K)
    climb.add(pooling(torch.tensor(z)), None)
    found = climb.ladder()
    assert found is not None
    assert len(found.mean_kl) == len(found.model_uncertainty_l1 or ()) == 2
    assert [turn[0] for turn in climb._turns[:M]] == list(range(M))
    assert any(turn[1:] != sorted(turn[1:]) for turn in climb._turns[:M])


def test_uncertainty_is_compared_on_the_rows_that_several_answer() -> None:
    rng = np.random.default_rng(0)
    theirs, own = rng.random(20), rng.random(20)
    own[5:] = np.nan
    scaled = theirs[:5] * own[:5].sum() / theirs[:5].sum()
    assert scaled_l1(theirs, own) == pytest.approx(np.abs(scaled - own[:5]).sum() / own[:5].sum())
    inside, outside = {"model_uncertainty": own, "total_uncertainty": theirs}, {"total_uncertainty": 1 + theirs}
    found = detection(inside, {**outside, "model_uncertainty": theirs})
    truth = np.r_[np.zeros(5), np.ones(20)]
    assert found["model_uncertainty"] == pytest.approx(roc_auc_score(truth, np.r_[own[:5], theirs]))
    assert found["total_uncertainty"] == 1.0
    assert detection(inside, {**outside, "model_uncertainty": own[5:]})["model_uncertainty"] is None


def test_halves_and_offsets() -> None:
    z = silenced(drawn(0), 2)
    pair = ((0, 1), (2, 3))
    rows = halves_rows([[pooling(torch.tensor(z), half) for half in pair]])
    count = [(~np.isnan(z[:, half, 0])).sum(1) for half in pair]
    for name, some in zip(("first", "second"), count, strict=True):
        assert (np.isnan(rows[name][:, 0]) == (some < 2)).all()
    both = (count[0] == 2) & (count[1] == 2)
    first, second = (rows[name][both, 0] for name in ("first", "second"))
    found = halves_figures(rows, 1.0)
    assert found["model_uncertainty_ratio"] == pytest.approx(first.mean() / second.mean())
    offsets = Offsets(FAMILY, pooling, N)
    student = FAMILY.predictive(torch.tensor(drawn(1)), None, "probabilities")
    offsets.add(torch.tensor(z), {0: student})
    fake = offsets.rows()[0]
    assert len(fake["ensemble"]) == N
    assert fake["model_uncertainty"].mean() == pytest.approx(fake["ensemble"].mean(), rel=1e-4)
    there, mean = ~np.isnan(z[..., :1]), np.log(softmax(drawn(1)).mean(1, keepdims=True))

    def uncertainty(scale: float, drawn: Floats) -> Floats:
        """Of the heads of those who answer."""
        p = softmax(mean + scale * drawn)
        each, share = entropy(p, axis=-1), there / there.sum(1, keepdims=True)
        found: Floats = entropy((share * p).sum(1), axis=-1) - (share[..., 0] * each).sum(1)
        return found

    fakes, wanted = [], fake["ensemble"].mean()
    for draw in range(8):
        of = normals((1, M, K), "offsets", draw).astype(np.float64)
        scale = brentq(lambda scale, of=of: uncertainty(scale, of).mean() - wanted, 1e-3, 20, xtol=1e-9)
        fakes.append(uncertainty(scale, of))
    best = min(fakes, key=lambda one: np.abs(one - fake["ensemble"]).sum())
    np.testing.assert_allclose(fake["model_uncertainty"], best, rtol=1e-4, atol=1e-7)
    nobody = Offsets(FAMILY, pooling, N)
    nobody.add(torch.tensor(alone(z)), {0: student})
    assert nobody.rows() == {}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_calibration_of_the_rows_that_members_answer_finds_a_distortion_again(task: str) -> None:
    name = {"classification": "categorical", "regression": "gaussian"}[task]
    assert open_task(task)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 1, 2)) * 2 + rng.normal(size=(400, M, 2)) * 0.7
    there = rng.random((400, M)) < 0.6
    there[:, 0] = True
    family = open_family(name)
    ensemble = family.predictive(*those_who_answer(torch.tensor(np.where(there[..., None], z, np.nan)), None), "logits")
    whole = family.predictive(torch.tensor(z), None, "logits")
    by = Calibration(temperature=1.0, spread=0.6) if task == "classification" else Calibration(spread=0.6, variance=0.5)
    student = whole.calibrated(by)
    found = fit(ensemble, student)
    same = matched(student.calibrated(found), ensemble).summary().model
    several = there.sum(1) > 1
    assert float(same[several].mean()) == pytest.approx(float(ensemble.summary().model[several].mean()), rel=1e-3)
    assert found.spread == pytest.approx(1 / 0.6, rel=0.1)
    if task == "regression":
        assert found.variance == pytest.approx(2.0, rel=1e-6)


def test_where_one_member_answers_each_row_there_is_no_spread_to_fit() -> None:
    z = drawn(0)
    student = FAMILY.predictive(torch.tensor(z) / 2, None, "probabilities")
    found = fit(pooling(torch.tensor(alone(z))), student)
    assert found.spread == 1
    assert found.temperature == pytest.approx(0.5, rel=1e-3)
