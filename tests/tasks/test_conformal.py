"""Thresholds of calibration rows, against loops: which rows are kept, and what sets and intervals hold."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ensemble_distill.runtime.jsons import line_of_json, parse_json
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.conformal import Intervals, LabelSets, Sets
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.reference import Reference, fewest_for, most_rows, reference_of
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.tasks.targets import Target

NAMES = ("cat", "dog", "eel", "fox")
SHARES = st.decimals(min_value="0.001", max_value="0.999", places=3)


def reference(scores: Any) -> Reference:
    values = tuple(sorted(float(np.float32(score)) for score in scores))
    return Reference(len(values), values, values, (values,))


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- thresholds ---------------------------------------------------------------------------------------------------


@given(SHARES, st.integers(1, 300))
def test_the_conformal_threshold_is_the_least_with_as_many_scores_below_as_are_needed(alpha: Decimal, n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n).astype(np.float32)
    needed = (n + 1) * (1 - alpha)
    inside = [t for t in sorted(scores) if sum(s <= t for s in scores) >= needed]
    (found,) = reference(scores).conformal_thresholds(float(alpha))
    assert found == pytest.approx(inside[0] if inside else np.inf, rel=2e-5, abs=2e-6)
    assert not inside or found > inside[0]
    assert np.isfinite(found) == (n >= fewest_for(float(alpha)))


@given(SHARES, st.integers(1, 300))
def test_the_threshold_of_a_coverage_is_the_least_that_keeps_as_many(coverage: Decimal, n: int) -> None:
    values = np.random.default_rng(n).uniform(size=n).astype(np.float32)
    enough = [t for t in sorted(values) if sum(v <= t for v in values) >= coverage * n]
    found = reference(values).threshold(float(coverage), "model_uncertainty")
    assert enough[0] < found <= enough[0] * (1 + 2e-5)


def test_a_share_is_what_was_written_and_all_is_all() -> None:
    hundred = reference(range(100))
    assert math.ceil(0.07 * 100) == 8, "which is why shares are fractions"
    assert hundred.threshold(0.07, "total_uncertainty") == pytest.approx(6, rel=2e-5)
    assert hundred.threshold(1.0, "total_uncertainty") == pytest.approx(99, rel=2e-5)


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3)])
def test_the_fewest_rows_for_an_alpha(alpha: float, n: int) -> None:
    assert fewest_for(alpha) == n
    assert np.isfinite(reference(range(n)).conformal_thresholds(alpha)).all()
    assert not np.isfinite(reference(range(n - 1)).conformal_thresholds(alpha)).any()


# --- what is promised ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_intervals_hold_the_promised_share_of_new_rows() -> None:
    """Of n scores and one more, exchangeable, the last is inside with probability ⌈(n + 1)(1 − α)⌉ ÷ (n + 1)."""
    rng, n, draws, alpha = np.random.default_rng(0), 24, 8_000, 0.2
    mean, y = np.zeros((draws, n + 1)), rng.standard_t(2, size=(draws, n + 1))  # far from the normal that is said
    covered = 0
    for m, truth in zip(mean, y, strict=True):
        scores = Intervals().scores({"mean": m, "variance": np.ones(n + 1)}, truth)[:, 0]
        threshold = np.sort(scores[:n])[math.ceil((n + 1) * (1 - alpha)) - 1]
        assert reference(scores[:n]).conformal_thresholds(alpha) == pytest.approx(threshold, rel=2e-5, abs=2e-6)
        covered += scores[n] <= threshold
    assert abs(covered / draws - 20 / 25) < 4 * math.sqrt(0.16 / draws)


@pytest.mark.thorough
@pytest.mark.parametrize("task", [Classification(NAMES), MultiLabel(NAMES)], ids=lambda task: task.key)
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_sets_of_a_student_that_is_wrong_hold_the_promised_share(task: Any, alpha: float) -> None:
    rng, n, draws = np.random.default_rng(1), 39, 4_000
    z = 3 * rng.normal(size=(draws, n + 1, 4))
    said = z + 2 * rng.normal(size=z.shape)  # what is said is far from how labels are drawn
    if task.one_class:
        labels = (softmax(z).cumsum(-1) < rng.uniform(size=(draws, n + 1, 1))).sum(-1).clip(max=3)
        outputs = np.log(softmax(said))
    else:
        labels, outputs = (rng.uniform(size=z.shape) < 1 / (1 + np.exp(-z))).astype(np.int64), said
    covered = 0.0
    for y, logits in zip(labels, outputs, strict=True):
        thresholds = reference_of(task, [({"logits": logits[:n], "total_uncertainty": np.ones(n)}, y[:n])])
        found = task.conformal.measured({"logits": logits[n:]}, y[n:], thresholds.conformal_thresholds(alpha))
        covered += found["covered"].item()
    assert covered / draws > 1 - alpha - 4 * math.sqrt(alpha * (1 - alpha) / draws)
    if not task.one_class:  # nothing is forced into those sets, and many ties at rows without labels are inside
        assert covered / draws < 1 - alpha + 0.08


# --- sets and intervals -------------------------------------------------------------------------------------------


def test_sets_are_those_of_one_less_the_probability() -> None:
    rng, n, alpha = np.random.default_rng(2), 199, 0.03
    z, y = 2 * rng.normal(size=(n, 4)), rng.integers(4, size=n)
    new = 2 * rng.normal(size=(50, 4))
    p_new, p = softmax(new), softmax(z)
    t = sorted(1 - p[row, label] for row, label in enumerate(y))[math.ceil((n + 1) * (1 - alpha)) - 1]
    wanted = [[name for name, q in zip(NAMES, row, strict=True) if 1 - q <= t + 1e-9] for row in p_new]

    task = Classification(NAMES)
    outputs = {"logits": np.log(p).astype(np.float32), "total_uncertainty": np.ones(n)}
    thresholds = reference_of(task, [(outputs, y)]).conformal_thresholds(alpha)
    said = list(task.conformal.told(NAMES, {"logits": np.log(p_new).astype(np.float32)}, thresholds))
    assert [record["conformal_set"] for record in said] == wanted
    assert [record["conformal_size"] for record in said] == [len(one) for one in wanted]
    assert len({len(one) for one in wanted}) > 1


def test_the_likeliest_class_is_always_in_a_set_and_no_label_has_to_be() -> None:
    logits = np.log(softmax(np.array([[0.2, 0.1, 0.0, -0.1], [9.0, 0.0, 0.0, 0.0]])))
    none = np.array([-1.0], np.float32)  # no class has a probability above 1
    assert [record["conformal_set"] for record in Sets().told(NAMES, {"logits": logits}, none)] == [["cat"], ["cat"]]
    found = Sets().measured({"logits": logits}, np.array([1, 0]), none)
    assert found["covered"].tolist() == [[0.0], [1.0]]
    sure = np.array([-100.0], np.float32)
    assert [record["conformal_size"] for record in LabelSets().told(NAMES, {"logits": logits}, sure)] == [0, 0]


def test_a_set_of_labels_holds_all_of_a_row_and_a_row_without_any_fits_all() -> None:
    logits = np.array([[2.0, -1.0, 0.5, -3.0], [1.0, 1.0, 1.0, 1.0]])
    labels = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    scores = LabelSets().scores({"logits": logits}, labels)[:, 0]
    assert scores[0] == 1  # of the dog, at 1 − sigmoid(−1)
    assert scores[1] == np.finfo(np.float32).min
    at = np.array([1.0], np.float32)
    assert next(LabelSets().told(NAMES, {"logits": logits}, at))["conformal_set"] == ["cat", "dog", "eel"]
    assert LabelSets().measured({"logits": logits}, labels, at)["covered"].tolist() == [[1.0], [1.0]]
    assert LabelSets().measured({"logits": logits}, labels, at - 0.1)["covered"].tolist() == [[0.0], [1.0]]


def test_intervals_are_of_each_target_and_a_variance_of_0_is_no_certainty() -> None:
    mean, variance = np.array([[1.0, 1e6], [2.0, -1e6]]), np.array([[4.0, 1e8], [0.0, 1e8]])
    labels = np.array([[5.0, 1e6 + 2e4], [2.0, -1e6 - 1e4]])
    outputs = {"mean": mean, "variance": variance}
    scores = Intervals().scores(outputs, labels)
    assert_allclose(scores, [[2, 2], [0, 1]])
    told = list(Intervals().told(("a", "b"), outputs, np.array([1.5, 2.0], np.float32)))
    assert told[0] == {
        "conformal_lower a": -2.0,
        "conformal_upper a": 4.0,
        "conformal_lower b": 1e6 - 2e4,
        "conformal_upper b": 1e6 + 2e4,
    }
    apart = Intervals().scores({"mean": np.zeros(1), "variance": np.zeros(1)}, np.array([5.0]))
    assert np.isfinite(apart).all()
    (low,) = Intervals().told((), {"mean": np.zeros(1), "variance": np.zeros(1)}, apart[0])
    assert low["conformal_upper"] == pytest.approx(5.0, rel=1e-6)


def test_too_few_rows_make_the_set_of_all_and_no_bounds() -> None:
    nothing = np.array([np.inf], np.float32)
    logits = np.log(softmax(np.array([[50.0, 0.0, -200.0, 1.0]])))
    for scored in (Sets(), LabelSets()):
        assert next(scored.told(NAMES, {"logits": logits}, nothing))["conformal_set"] == list(NAMES)
    outputs = {"mean": np.ones(1), "variance": np.ones(1)}
    assert next(Intervals().told((), outputs, nothing)) == {"conformal_lower": None, "conformal_upper": None}
    found = Intervals().measured(outputs, np.array([7.0]), nothing)
    assert found["covered"] == 1
    assert np.isinf(found["size"]).all()


# --- the record ---------------------------------------------------------------------------------------------------


def test_a_reference_reads_back_as_the_same_float32() -> None:
    rng = np.random.default_rng(3)
    outputs = {"mean": rng.normal(size=(500, 2)), "variance": rng.uniform(size=(500, 2))}
    outputs |= {"total_uncertainty": rng.uniform(size=500) * 1e-6, "model_uncertainty": rng.uniform(size=500) * 1e-30}
    task = Regression((Target("a", "", 1.0), Target("b", "", 2.0)))
    found = reference_of(task, [(outputs, rng.normal(size=(500, 2)))])
    assert Reference.from_json(parse_json(line_of_json(found.to_json()))) == found
    assert found.conformal is not None
    assert len(found.conformal) == 2
    wanted = np.sort(outputs["model_uncertainty"].astype(np.float32))
    assert np.array_equal(np.array(found.model_uncertainty, np.float32), wanted)


def test_without_labels_and_of_one_head_less_is_known() -> None:
    found = reference_of(Classification(NAMES), [({"total_uncertainty": np.arange(3.0)}, None)])
    assert found.to_json() == {"rows": 3, "total_uncertainty": [0.0, 1.0, 2.0]}
    assert found.kept_by() == "total_uncertainty"
    assert reference(range(3)).kept_by() == "model_uncertainty"


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": 4},
        {"rows": 0, "total_uncertainty": [], "conformal": None},
        {"total_uncertainty": [0.0, 2.0, 1.0]},
        {"conformal": [[0.0, 1.0]]},
        {"model_uncertainty": [0.0, 1.0, float("nan")]},
        {"total_uncertainty": [0.0, 1.0, float("inf")]},
        {"total_uncertainty": "abc"},
    ],
    ids=str,
)
def test_what_no_rows_give_is_refused(damage: dict[str, Any]) -> None:
    whole = {"rows": 3, "total_uncertainty": [0.0, 1.0, 2.0], "conformal": [[0.0, 1.0, 2.0]]}
    Reference.from_json(whole)
    with pytest.raises(ValueError):  # noqa: PT011, whose text is pydantic's
        Reference.from_json({**whole, **damage})


def test_scores_of_another_task_are_refused() -> None:
    one = reference(range(3))
    one.refuse_others(Classification(NAMES))
    with pytest.raises(ValueError, match="1 scores a row, and regression has 2"):
        one.refuse_others(Regression((Target("a", "", 1.0), Target("b", "", 2.0))))


def test_a_file_stays_small_however_many_rows_and_targets_there_are() -> None:
    many = Regression(tuple(Target(f"t{at}", "", 1.0) for at in range(200)))
    assert most_rows(Classification(NAMES)) == 4096
    assert most_rows(many) * (2 + 200) <= 2**14
