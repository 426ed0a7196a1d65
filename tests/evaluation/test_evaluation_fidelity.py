"""How near a student is: every figure against loops, and what perfect, collapsed and faked students get."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy, spearmanr

from ensemble_distill.evaluation.fidelity import fidelity, spearman
from ensemble_distill.evaluation.names import FIDELITY
from ensemble_distill.evaluation.rows import concatenate, fidelity_rows, member_rows, prediction_rows
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.dirichlet import Dirichlet
from ensemble_distill.predictive.protocol import Average
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.figures import Figures

TASK = Classification(("a", "b", "c"))

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

N, M, K = 200, 4, 5
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])


def an_ensemble(seed: int = 0, rows: int = N, members: int = M, spread: float = 1.0) -> Floats:
    """Logits whose members part most where the common score is unsure, as those of trained members do."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(rows, 1, K)) * rng.uniform(0.5, 6, size=(rows, 1, 1))
    return common + spread * rng.normal(size=(rows, members, K))


def labels(seed: int = 0) -> Ints:
    rng = np.random.default_rng(seed + 100)
    drawn: Ints = (an_ensemble(seed).mean(1) + rng.gumbel(size=(N, K))).argmax(1)
    return drawn


def figures(
    ensemble: Floats,
    student: Floats,
    y: Ints | None = None,
    *,
    weights: Floats | None = None,
    average: Average = "probabilities",
) -> Figures:
    """The fidelity that `evaluate` reports for these logits (N, M, K) and (N, H, K)."""
    pooling = None if weights is None else torch.tensor(weights)
    teacher = Categorical(torch.tensor(ensemble), pooling, average)
    heads = Categorical(torch.tensor(student), pooling if student.shape[1] == ensemble.shape[1] else None, average)
    known = None if y is None else torch.tensor(y)
    found = fidelity(
        prediction_rows(TASK, teacher, known),
        member_rows(TASK, teacher, known),
        prediction_rows(TASK, heads, known),
        fidelity_rows(teacher, heads),
    )
    json.dumps(found, allow_nan=False)  # null, never NaN
    assert list(found) == list(FIDELITY)
    return found


def value(figure: float | None) -> float:
    assert figure is not None
    return figure


def kl(p: Floats, q: Floats) -> float:
    return float(rel_entr(p, q).sum())


def mutual_information(p: Floats, w: Floats) -> Floats:
    mixture = np.average(p, axis=1, weights=w)
    found: Floats = entropy(mixture, axis=-1) - np.average(entropy(p, axis=-1), axis=1, weights=w)
    return found


# --- each figure against a loop ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_every_figure_is_its_loop(weights: Floats | None, average: Average) -> None:
    logits, heads, y = an_ensemble(0), 0.8 * an_ensemble(0) + 0.5 * an_ensemble(1), labels()
    w = np.full(M, 1 / M) if weights is None else weights
    found = figures(logits, heads, y, weights=weights, average=average)

    p, q = softmax(logits, axis=-1), softmax(heads, axis=-1)
    mixture, mixture_s = np.average(p, axis=1, weights=w), np.average(q, axis=1, weights=w)
    if average == "probabilities":
        pooled, pooled_s = mixture, mixture_s
    else:
        pooled, pooled_s = (softmax(np.average(z, axis=1, weights=w), axis=-1) for z in (logits, heads))

    member_kl = np.mean([sum(w[m] * kl(p[n, m], q[n, m]) for m in range(M)) for n in range(N)])
    assert found["member_kl"] == pytest.approx(member_kl)
    assert found["mean_kl"] == pytest.approx(np.mean([kl(pooled[n], pooled_s[n]) for n in range(N)]))
    assert found["agreement"] == pytest.approx(np.mean([pooled[n].argmax() == pooled_s[n].argmax() for n in range(N)]))

    uncertainty, uncertainty_s = mutual_information(p, w), mutual_information(q, w)
    collapsed = np.mean([kl(mixture[n], mixture_s[n]) for n in range(N)])
    assert found["diversity_explained"] == pytest.approx(1 - member_kl / (uncertainty.mean() + collapsed))
    product = ensemble_square = student_square = 0.0
    for n in range(N):
        for m in range(M):
            for k in range(K):
                dp, dq = p[n, m, k] - mixture[n, k], q[n, m, k] - mixture_s[n, k]
                product, ensemble_square, student_square = (
                    product + dp * dq,
                    ensemble_square + dp**2,
                    student_square + dq**2,
                )
    assert found["deviation_correlation"] == pytest.approx(product / np.sqrt(ensemble_square * student_square))

    assert found["model_uncertainty_l1"] == pytest.approx(np.abs(uncertainty_s - uncertainty).sum() / uncertainty.sum())
    assert found["model_uncertainty_ratio"] == pytest.approx(uncertainty_s.mean() / uncertainty.mean())
    assert found["model_uncertainty_spearman"] == pytest.approx(spearmanr(uncertainty_s, uncertainty).statistic)
    control = spearmanr(entropy(mixture_s, axis=-1), uncertainty).statistic
    assert found["model_uncertainty_spearman_control"] == pytest.approx(control)

    nll_member = np.mean([-log_softmax(logits[n, m])[y[n]] for n in range(N) for m in range(M)])
    nll_student, nll_ensemble = (np.mean([-np.log(d[n, y[n]]) for n in range(N)]) for d in (pooled_s, pooled))
    assert found["gap_closed"] == pytest.approx((nll_member - nll_student) / (nll_member - nll_ensemble))


def test_batches_of_rows_give_the_same_figures() -> None:
    logits, heads = torch.tensor(an_ensemble(0)), torch.tensor(an_ensemble(1))
    whole = fidelity_rows(Categorical(logits), Categorical(heads))
    batches = [slice(i, i + 70) for i in range(0, N, 70)]
    parts = concatenate(fidelity_rows(Categorical(logits[b]), Categorical(heads[b])) for b in batches)
    assert whole.keys() == parts.keys()
    for name, rows in whole.items():
        assert rows.shape == (N,)
        assert_allclose(parts[name], rows, rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=25).filter(
        lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))
    )
)
def test_spearman_is_scipys_with_ties(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == spearman(np.exp(a), b)  # ranks only


def test_members_of_weight_0_are_no_part_of_any_figure() -> None:
    logits, heads, y = an_ensemble(0), 0.8 * an_ensemble(0) + 0.5 * an_ensemble(1), labels()
    logits[:, 1], heads[:, 1] = 6 * an_ensemble(2)[:, 1], 6 * an_ensemble(3)[:, 1]
    without = figures(np.delete(logits, 1, 1), np.delete(heads, 1, 1), y)
    found = figures(logits, heads, y, weights=np.array([1.0, 0.0, 1.0, 1.0]))
    # the mean member is that of the members that `evaluate` passes on
    for name in without.keys() - {"gap_closed"}:
        assert found[name] == pytest.approx(without[name]), name


# --- known students ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_perfect_student_explains_everything(average: Average) -> None:
    logits = an_ensemble()
    offsets = np.random.default_rng(0).normal(size=(N, M, 1))  # which a softmax does not see
    found = figures(logits, logits + offsets, labels(), weights=WEIGHTS, average=average)
    for name in ("diversity_explained", "deviation_correlation", "agreement", "gap_closed"):
        assert found[name] == pytest.approx(1), name
    for name in ("model_uncertainty_ratio", "model_uncertainty_spearman"):
        assert found[name] == pytest.approx(1), name
    for name in ("member_kl", "mean_kl", "model_uncertainty_l1"):
        assert found[name] == pytest.approx(0, abs=1e-12), name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 99), scale=st.floats(0, 5), weighted=st.booleans(), logits_average=st.booleans())
def test_heads_collapsed_to_any_one_prediction_explain_nothing(
    seed: int, scale: float, weighted: bool, logits_average: bool
) -> None:
    """Zero whatever the common prediction is: as good as the ensemble's own mean, or anything else."""
    logits = an_ensemble(seed, rows=20)
    mixture = softmax(logits, axis=-1).mean(1, keepdims=True)
    common = np.log(mixture) + scale * np.random.default_rng(seed).normal(size=(20, 1, K))
    found = figures(
        logits,
        common.repeat(M, axis=1),
        weights=WEIGHTS if weighted else None,
        average="logits" if logits_average else "probabilities",
    )
    assert found["diversity_explained"] == pytest.approx(0, abs=1e-10)
    assert found["model_uncertainty_ratio"] == pytest.approx(0, abs=1e-10)
    assert found["model_uncertainty_l1"] == pytest.approx(1, abs=1e-10)
    assert found["model_uncertainty_spearman"] is None  # it has no order
    assert found["deviation_correlation"] is None


def test_heads_of_the_wrong_members_are_worse_than_collapsed_ones() -> None:
    logits = an_ensemble(spread=2.0)
    found = figures(logits, np.roll(logits, 1, axis=1))
    assert value(found["diversity_explained"]) < 0
    assert value(found["deviation_correlation"]) < 0
    assert found["mean_kl"] == pytest.approx(0, abs=1e-12)
    for name in ("model_uncertainty_ratio", "model_uncertainty_spearman"):
        assert found[name] == pytest.approx(1), name  # they see only how much, not which member
    assert found["model_uncertainty_l1"] == pytest.approx(0, abs=1e-12)


def test_half_the_deviations_of_the_logits_explain_most_of_the_diversity() -> None:
    """Second order in small deviations: D = 1 − (1 − c)² for heads that keep a share c of them, here c = ½."""
    logits = an_ensemble(spread=0.05)
    mean = logits.mean(1, keepdims=True)
    found = figures(logits, mean + 0.5 * (logits - mean))
    assert found["diversity_explained"] == pytest.approx(0.75, abs=0.01)
    assert found["model_uncertainty_ratio"] == pytest.approx(0.25, abs=0.01)
    assert found["deviation_correlation"] == pytest.approx(1, abs=1e-3)


def test_constant_random_offsets_on_the_mean_fake_the_ratio_and_the_ranks_but_not_the_diversity() -> None:
    logits = an_ensemble(rows=2000, members=8)
    mean = np.log(softmax(logits, axis=-1).mean(1, keepdims=True))
    offsets = np.random.default_rng(7).normal(size=(1, 8, K))  # the same on every row

    def excess(scale: float) -> float:
        return value(figures(logits, mean + scale * offsets)["model_uncertainty_ratio"]) - 1

    fake = figures(logits, mean + brentq(excess, 0.1, 3, xtol=1e-4) * offsets)
    assert fake["model_uncertainty_ratio"] == pytest.approx(1, abs=0.01)
    assert value(fake["model_uncertainty_spearman"]) > 0.8
    assert value(fake["model_uncertainty_spearman_control"]) > 0.8  # as would no heads at all
    assert value(fake["diversity_explained"]) < 0
    assert abs(value(fake["deviation_correlation"])) < 0.2


# --- what does not apply ----------------------------------------------------------------------------------

DIVERSITY = {"member_kl", "collapsed_kl", "diversity_explained", "deviation_correlation"}
UNCERTAINTY = {
    "model_uncertainty_l1",
    "model_uncertainty_ratio",
    "model_uncertainty_spearman",
    "model_uncertainty_spearman_control",
}


def absent(found: Figures) -> set[str]:
    return {name for name, figure in found.items() if figure is None}


def test_a_single_head_has_no_diversity_figures() -> None:
    found = figures(an_ensemble(), an_ensemble()[:, :1], labels())
    assert absent(found) == DIVERSITY | UNCERTAINTY
    assert figures(an_ensemble(), an_ensemble()[:, :1])["mean_kl"] == found["mean_kl"]


def test_a_dirichlet_student_has_uncertainties_but_no_heads() -> None:
    """Its mutual information is in closed form: here against draws of the probabilities themselves."""
    logits, y = an_ensemble(), labels()
    log_concentration = logits.mean(1, keepdims=True) + 1.0
    teacher, student = Categorical(torch.tensor(logits)), Dirichlet(torch.tensor(log_concentration))
    rows = prediction_rows(TASK, student, torch.tensor(y))
    found = fidelity(
        prediction_rows(TASK, teacher, torch.tensor(y)),
        member_rows(TASK, teacher, torch.tensor(y)),
        rows,
        fidelity_rows(teacher, student),
    )
    assert absent(found) == DIVERSITY
    expected = softmax(log_concentration[:, 0], axis=-1)
    p = softmax(logits, axis=-1)
    assert found["mean_kl"] == pytest.approx(np.mean([kl(p[n].mean(0), expected[n]) for n in range(N)]))
    assert_allclose(rows["nll"], -np.log(expected[np.arange(N), y]), rtol=1e-10)
    rng = np.random.default_rng(0)
    for n in range(0, N, 40):
        draws = rng.dirichlet(np.exp(log_concentration[n, 0]), 100_000)
        assert rows["data_uncertainty"][n] == pytest.approx(entropy(draws, axis=-1).mean(), abs=0.01)
        assert rows["total_uncertainty"][n] == pytest.approx(entropy(expected[n]))
    ratio = rows["model_uncertainty"].mean() / mutual_information(p, np.full(M, 1 / M)).mean()
    assert found["model_uncertainty_ratio"] == pytest.approx(ratio)


def test_heads_that_are_not_one_per_member_keep_only_the_uncertainties() -> None:
    found = figures(an_ensemble(), an_ensemble(1)[:, :3], labels())
    assert absent(found) == DIVERSITY


def test_without_labels_there_is_no_gap_to_close() -> None:
    assert absent(figures(an_ensemble(), an_ensemble(1))) == {"gap_closed"}


def test_an_ensemble_of_one_has_no_diversity_to_explain() -> None:
    logits = an_ensemble(members=1)
    found = figures(logits, logits, labels())
    assert absent(found) == DIVERSITY | UNCERTAINTY | {"gap_closed"}  # its member is the ensemble: no gap either
    assert found["agreement"] == 1
    one = Categorical(torch.tensor(logits))
    assert set(fidelity_rows(one, one)) == {"mean_kl"}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_identical_members_leave_only_rounding_and_no_figure_is_made_of_it(weights: Floats | None) -> None:
    clones = an_ensemble(members=1, rows=N).repeat(M, axis=1)
    many = np.concatenate([clones] * 50)
    found = figures(many, many, np.concatenate([labels()] * 50), weights=weights)
    assert absent(found) == UNCERTAINTY | {"diversity_explained", "deviation_correlation", "gap_closed"}
    assert found["member_kl"] == pytest.approx(0, abs=1e-12)
    diverse = figures(clones, an_ensemble(1), labels(), weights=weights)
    assert absent(diverse) == UNCERTAINTY | {"deviation_correlation", "gap_closed"}
    assert value(diverse["diversity_explained"]) < 0


def test_a_constant_has_no_ranks() -> None:
    rising = np.arange(5.0)
    assert spearman(np.full(5, 0.3), rising) is None
    assert spearman(rising, np.full(5, 0.3)) is None
    assert spearman(0.3 + 1e-16 * rising[::-1], rising) is None
    assert spearman(rising[:1], rising[:1]) is None
