"""What the controls of the fidelity figures get: identities, and every figure against NumPy, SciPy and their loops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import entropy, spearmanr

from ensemble_distill.evaluation import offsets
from ensemble_distill.evaluation.controls import controls
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.halves import SPLITS, halves, halves_rows
from ensemble_distill.evaluation.names import CONTROLS, FIDELITY
from ensemble_distill.evaluation.offsets import DRAWS, Offsets
from ensemble_distill.evaluation.rows import fidelity_rows, member_rows, prediction_rows
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.dirichlet import Dirichlet
from ensemble_distill.predictive.gaussian_vector import GaussianVectorFamily
from ensemble_distill.predictive.protocol import Average, Predictive
from ensemble_distill.runtime.keys import normals
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.tasks.task import Task

TASKS: dict[str, Task] = {"classification": Classification(("a", "b", "c")), "regression": Regression()}

Floats = NDArray[np.float64]

N, M, K = 300, 6, 5
WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0, 1.5, 2.0])
DIVERSITY = {"diversity_explained", "deviation_correlation", "member_kl", "collapsed_kl"}
SPREAD = {"model_uncertainty_l1", "model_uncertainty_ratio", "model_uncertainty_spearman"}


def classes(seed: int = 0, members: int = M, spread: float = 1.0) -> Floats:
    """Logits whose members part most where the common score is unsure."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(N, 1, K)) * rng.uniform(0.5, 6, size=(N, 1, 1))
    return common + spread * rng.normal(size=(N, members, K))


def numbers(seed: int = 0, unit: float = 1.0) -> Floats:
    """Means and log-variances (N, M, 2), whose spread differs from row to row, in some unit."""
    rng = np.random.default_rng(seed)
    mean = 50 + 5 * rng.normal(size=(N, 1)) + rng.uniform(0.2, 1, size=(N, 1)) * rng.normal(size=(N, M))
    return np.stack([unit * mean, np.log(rng.uniform(0.5, 2, size=(N, M)) * unit**2)], axis=-1)


def controlled(
    task: str,
    outputs: Floats,
    student: Floats | Predictive,
    *,
    weights: Floats | None = None,
    average: Average = "probabilities",
    batch: int = 70,
    limit: int = 2**24,
) -> tuple[dict[str, Figures], Figures]:
    """The controls and the fidelity, from batches of rows as `evaluate` sees them."""
    family, pooling = (
        open_family("gaussian" if task == "regression" else "categorical"),
        None if weights is None else torch.tensor(weights),
    )

    def pooled(raw: torch.Tensor) -> Predictive:
        return family.predictive(raw, pooling, average)

    theirs = torch.tensor(outputs)
    heads = pooled(torch.tensor(student)) if isinstance(student, np.ndarray) else student
    offsets = Offsets(family, pooled, N, limit)
    for start in range(0, N, batch):
        rows = range(start, min(start + batch, N))
        part = (
            pooled(torch.tensor(student[rows])) if isinstance(student, np.ndarray) else Dirichlet(heads_of(heads)[rows])
        )
        offsets.add(theirs[rows], {7: part})
    ensemble = pooled(theirs)
    some = range(outputs.shape[1]) if weights is None else np.nonzero(weights)[0].tolist()
    pairs = [
        [family.predictive(theirs[:, half], None if pooling is None else pooling[list(half)], average) for half in pair]
        for pair in halves(some)
    ]
    rows = prediction_rows(TASKS[task], ensemble, None), prediction_rows(TASKS[task], heads, None)
    both, unit = fidelity_rows(ensemble, heads), TASKS[task].unit(rows[0])
    found = controls(*rows, both, offsets.rows().get(7), halves_rows(pairs) if pairs else None, unit)
    own = fidelity(rows[0], member_rows(TASKS[task], ensemble, None), rows[1], both, unit)
    assert list(found) == list(CONTROLS)
    assert all(list(figures) == list(FIDELITY) for figures in found.values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found, "null, never NaN"
    return found, own


def heads_of(predictive: Predictive) -> torch.Tensor:
    assert isinstance(predictive, Dirichlet)
    return predictive.log_concentration


def known(figures: Mapping[str, float | None]) -> set[str]:
    return {name for name, value in figures.items() if value is not None}


def shares(weights: Floats | None, members: int = M) -> Floats:
    w = np.ones(members) if weights is None else weights
    found: Floats = w / w.sum()
    return found


def spread_of(p: Floats, w: Floats) -> Floats:
    """Mutual information (N,) of probabilities (N, M, K)."""
    found: Floats = entropy(np.tensordot(p, w, ((1,), (0,))), axis=-1) - entropy(p, axis=-1) @ w
    return found


# --- a student of classes ---------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_every_control_is_its_loop(weights: Floats | None, average: Average) -> None:
    logits, heads = classes(), 0.8 * classes() + 0.5 * classes(1)
    found, own = controlled("classification", logits, heads, weights=weights, average=average)
    w, p, q = shares(weights), softmax(logits, axis=-1), softmax(heads, axis=-1)
    uncertainty = spread_of(p, w)
    mean, theirs = (np.tensordot(each, w, ((1,), (0,))) for each in (p, q))

    collapsed = found["collapsed"]
    assert collapsed["diversity_explained"] == 0
    assert collapsed["model_uncertainty_l1"] == pytest.approx(1)
    assert collapsed["model_uncertainty_ratio"] == 0
    assert collapsed["member_kl"] == pytest.approx((rel_entr(p, theirs[:, None]).sum(-1) @ w).mean())
    assert collapsed["member_kl"] == collapsed["collapsed_kl"] == own["collapsed_kl"]
    assert known(collapsed) == DIVERSITY - {"deviation_correlation"} | SPREAD - {"model_uncertainty_spearman"}

    fakes = []
    for draw in range(DRAWS):
        drawn = normals((M, K), "offsets", draw).astype(np.float64)
        low, high = 0.0, 100.0  # by bisection, here
        for _ in range(60):
            scale = (low + high) / 2
            fake = softmax(np.log(theirs)[:, None] + scale * drawn, axis=-1)
            low, high = (scale, high) if spread_of(fake, w).mean() < uncertainty.mean() else (low, scale)
        fakes.append(fake)
    fake = min(fakes, key=lambda fake: np.abs(spread_of(fake, w) - uncertainty).sum())
    offsets, own_mean = found["offsets"], np.tensordot(fake, w, ((1,), (0,)))
    a, b = p - mean[:, None], fake - own_mean[:, None]
    member_kl = (rel_entr(p, fake).sum(-1) @ w).mean()
    collapsed_kl = (rel_entr(p, own_mean[:, None]).sum(-1) @ w).mean()
    wanted = {
        "diversity_explained": 1 - member_kl / collapsed_kl,
        "deviation_correlation": (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()),
        "model_uncertainty_l1": np.abs(spread_of(fake, w) - uncertainty).sum() / uncertainty.sum(),
        "model_uncertainty_ratio": 1,
        "model_uncertainty_spearman": spearmanr(spread_of(fake, w), uncertainty).statistic,
        "member_kl": member_kl,
        "collapsed_kl": collapsed_kl,
    }
    assert known(offsets) == set(wanted)
    for name, value in wanted.items():
        assert offsets[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name

    total = entropy(theirs, axis=-1)
    scaled = total * uncertainty.sum() / total.sum()
    alone = found["total_uncertainty"]
    assert known(alone) == SPREAD
    assert alone["model_uncertainty_l1"] == pytest.approx(np.abs(scaled - uncertainty).sum() / uncertainty.sum())
    assert alone["model_uncertainty_ratio"] == pytest.approx(1)
    assert alone["model_uncertainty_spearman"] == pytest.approx(own["model_uncertainty_spearman_control"])

    each = []
    for one, other in halves(range(M)):
        first, second = (spread_of(p[:, list(h)], shares(w[list(h)], M // 2)) for h in (one, other))
        l1 = np.abs(first - second).sum() / second.sum()
        each.append([l1, first.sum() / second.sum(), spearmanr(first, second).statistic])
    assert known(found["halves"]) == SPREAD
    names = ("model_uncertainty_l1", "model_uncertainty_ratio", "model_uncertainty_spearman")
    assert_allclose([found["halves"][name] for name in names], np.mean(each, axis=0), rtol=1e-9)


def test_random_offsets_fake_the_size_and_the_ranks_but_not_whose_they_are() -> None:
    noise = 0.3 * np.random.default_rng(1).normal(size=(N, M, K))
    found, own = controlled("classification", classes(), classes() + noise)
    offsets = found["offsets"]
    assert offsets["model_uncertainty_ratio"] == pytest.approx(1, abs=1e-5)
    assert (offsets["model_uncertainty_spearman"] or 0) > 0.7
    assert (offsets["diversity_explained"] or 0) < 0 < (own["diversity_explained"] or 0)
    assert abs(offsets["deviation_correlation"] or 0) < 0.2 < (own["deviation_correlation"] or 0)


def test_of_many_rows_evenly_spread_ones_are_kept_for_the_offsets() -> None:
    logits, heads = classes(), classes(1)
    whole, _ = controlled("classification", logits, heads)
    some, _ = controlled("classification", logits, heads, limit=N * M * K // 3)
    apart, _ = controlled("classification", logits, heads, limit=N * M * K // 3, batch=41)
    assert some["offsets"] == apart["offsets"], "whatever the batches"
    assert some["offsets"] != whole["offsets"]
    assert some["offsets"]["model_uncertainty_ratio"] == pytest.approx(1, abs=1e-5)
    assert {**some, "offsets": None} == {**whole, "offsets": None}


def test_offsets_are_the_same_however_many_rows_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = controlled("classification", classes(), classes(1))
    monkeypatch.setattr(offsets, "CHUNK", 7 * M * K)
    some, _ = controlled("classification", classes(), classes(1))
    for name in known(whole["offsets"]):
        assert some["offsets"][name] == pytest.approx(whole["offsets"][name], rel=1e-4), name


def test_the_best_offsets_are_chosen_on_evenly_spread_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second row has a twin before it, so that half of the rows say what all do."""
    logits, heads = (np.repeat(classes(seed)[: N // 2], 2, axis=0) for seed in (0, 1))
    whole, _ = controlled("classification", logits, heads)
    monkeypatch.setattr(offsets, "SAMPLE", N * M * K // 2)
    some, _ = controlled("classification", logits, heads)
    for name in known(whole["offsets"]):
        assert some["offsets"][name] == pytest.approx(whole["offsets"][name], rel=1e-4), name


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_of_numbers_the_means_are_moved_in_any_unit(weights: Floats | None, unit: float) -> None:
    outputs, heads = numbers(unit=unit), numbers(1, unit)
    found, _ = controlled("regression", outputs, heads, weights=weights)
    w = shares(weights)

    def moments(raw: Floats) -> tuple[Floats, Floats, Floats]:
        center = raw[..., 0] @ w
        return center, np.exp(raw[..., 1]) @ w, (raw[..., 0] - center[:, None]) ** 2 @ w

    def kl(mean: Floats, variance: Floats) -> float:
        ratio = np.exp(outputs[..., 1]) / variance
        each: Floats = 0.5 * ((outputs[..., 0] - mean) ** 2 / variance + ratio - 1 - np.log(ratio))
        return float((each @ w).mean())

    center, _, model = moments(outputs)
    center_s, data_s, model_s = moments(heads)
    drawn = normals((M, 2), "offsets", 0).astype(np.float64)[:, 0]
    drawn = (drawn - drawn @ w) / np.sqrt(((drawn - drawn @ w) ** 2) @ w)
    spread = np.sqrt(model.mean())
    offsets = found["offsets"]
    assert offsets["model_uncertainty_ratio"] == pytest.approx(1)
    assert offsets["model_uncertainty_l1"] == pytest.approx(np.abs(model.mean() - model).sum() / model.sum())
    assert offsets["model_uncertainty_spearman"] is None, "the same on every row: no order"
    a = outputs[..., 0] - center[:, None]
    wanted = (a * drawn).sum() / np.sqrt((a**2).sum() * N * (drawn**2).sum())
    assert offsets["deviation_correlation"] == pytest.approx(wanted)
    raw = normals((M, 2), "offsets", 0).astype(np.float64)[:, 0]
    shift = spread * raw / np.sqrt(((raw - raw @ w) ** 2) @ w)
    member_kl = kl(center_s[:, None] + shift, (data_s + model_s)[:, None])
    collapsed_kl = kl(center_s[:, None] + shift @ w, (data_s + model_s)[:, None] + spread**2)
    assert offsets["diversity_explained"] == pytest.approx(1 - member_kl / collapsed_kl)
    assert found["collapsed"]["diversity_explained"] == 0
    assert found["total_uncertainty"]["model_uncertainty_ratio"] == pytest.approx(1)
    total = data_s + model_s
    alone = found["total_uncertainty"]["model_uncertainty_spearman"]
    assert alone == pytest.approx(spearmanr(total, model).statistic)


def test_of_several_targets_each_is_moved_by_as_many_of_its_standard_deviations() -> None:
    """A fake in kilowatts is the fake in watts, whatever its other target is in."""
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(N, M, 2)), rng.normal(size=(N, M, 2)) / 4
    found = []
    for unit in ((1.0, 1.0), (1.3, 1000.0)):
        std = torch.tensor(unit, dtype=torch.float64)
        raw = torch.cat([torch.tensor(mean) * std, torch.tensor(log_variance) + 2 * std.log()], dim=-1)
        family = GaussianVectorFamily(unit)
        offsets = Offsets(family, partial(family.predictive, weights=None, average="probabilities"), N)
        offsets.add(raw, {0: family.predictive(raw.flip(0), None, "probabilities")})
        found.append(offsets.rows()[0])
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, atol=1e-9, err_msg=name)


# --- the ensemble's halves --------------------------------------------------------------------------------------


def test_halves_are_equal_apart_and_the_same_every_time() -> None:
    for members in (range(4), range(7), [1, 3, 4, 8, 9, 11]):
        found = halves(members)
        assert found == halves(members)
        assert len(found) == SPLITS
        assert len(set(found)) > 1
        for one, other in found:
            assert len(one) == len(other) == len(members) // 2
            assert not set(one) & set(other)
            assert {*one, *other} <= set(members)
    assert halves(range(3)) == halves([]) == []


def test_halves_of_doubled_members_agree_where_each_has_one_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    three = classes(members=3)
    pairs = [((0, 1, 2), (3, 4, 5)), ((0, 4, 2), (3, 1, 5))]
    monkeypatch.setitem(globals(), "halves", lambda members: pairs)
    found, _ = controlled("classification", np.concatenate([three, three], axis=1), classes())
    assert found["halves"]["model_uncertainty_l1"] == pytest.approx(0, abs=1e-12)
    assert found["halves"]["model_uncertainty_ratio"] == pytest.approx(1)
    assert found["halves"]["model_uncertainty_spearman"] == pytest.approx(1)


@pytest.mark.thorough
def test_halves_of_larger_ensembles_are_nearer() -> None:
    l1 = [
        controlled("classification", classes(members=members), classes(members=members))[0]["halves"][
            "model_uncertainty_l1"
        ]
        or np.inf
        for members in (4, 16, 64)
    ]
    assert l1[0] > l1[1] > l1[2] > 0


def test_members_of_weight_0_are_in_no_half() -> None:
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    logits = classes()
    with_them, _ = controlled("classification", logits, classes(1), weights=weights)
    at = np.nonzero(weights)[0]
    pairs = [tuple(tuple(int(at[m]) for m in half) for half in pair) for pair in halves(range(4))]
    assert pairs == halves(at.tolist())
    without, _ = controlled("classification", logits[:, at], classes(1)[:, at], weights=weights[at])
    assert with_them["halves"] == pytest.approx(without["halves"])


# --- what does not apply ----------------------------------------------------------------------------------------


def test_a_clone_ensemble_has_nothing_to_control() -> None:
    clones = classes(members=1).repeat(M, axis=1)
    found, _ = controlled("classification", clones, classes(1))
    assert not known(found["halves"])
    assert not known(found["offsets"])
    assert not known(found["total_uncertainty"])
    assert known(found["collapsed"]) == {"diversity_explained", "member_kl", "collapsed_kl"}


def test_members_sure_of_different_classes_differ_more_than_any_offsets() -> None:
    logits = np.full((N, M, K), -60.0)
    for row in range(N):
        logits[row, np.arange(M), (np.arange(M) + row) % K] = 60.0
    found, _ = controlled("classification", logits, logits)
    assert not known(found["offsets"])
    assert found["collapsed"]["diversity_explained"] == 0


def test_a_student_collapsed_already_is_its_own_control() -> None:
    common = classes(1, members=1).repeat(M, axis=1)
    found, own = controlled("classification", classes(), common)
    for name in ("diversity_explained", "model_uncertainty_l1", "model_uncertainty_ratio", "member_kl"):
        assert own[name] == pytest.approx(found["collapsed"][name], abs=1e-9), name
    assert known(found["offsets"]) == DIVERSITY | SPREAD


def test_of_a_single_head_only_the_halves_are_told() -> None:
    found, _ = controlled("classification", classes(), classes(1)[:, :1])
    assert {name for name in CONTROLS if known(found[name])} == {"halves"}
    three, _ = controlled("classification", classes(members=3), classes(1, members=3))
    assert {name for name in CONTROLS if known(three[name])} == {"collapsed", "offsets", "total_uncertainty"}


def test_a_dirichlet_student_has_controls_of_its_model_uncertainty_alone() -> None:
    log_concentration = classes(1, members=1) + 1
    found, own = controlled("classification", classes(), Dirichlet(torch.tensor(log_concentration)))
    assert own["model_uncertainty_l1"] is not None
    assert own["diversity_explained"] is None
    for name in ("offsets", "total_uncertainty", "halves"):
        assert known(found[name]) == SPREAD
    assert known(found["collapsed"]) == SPREAD - {"model_uncertainty_spearman"}
    expected = log_softmax(log_concentration, axis=-1)
    heads, _ = controlled("classification", classes(), np.repeat(expected, M, axis=1))
    for name in SPREAD:
        assert found["offsets"][name] == pytest.approx(heads["offsets"][name]), name
    assert logsumexp(expected, axis=-1) == pytest.approx(0)
