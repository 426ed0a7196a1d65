"""Quality of predicted classes against independent loops; null where it does not apply, never NaN."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, log_loss

from ensemble_distill.evaluation.ood import detection
from ensemble_distill.evaluation.rows import concatenate, member_rows, prediction_rows, prefixed
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.tasks.classification import Classification, expected_calibration_error

TASK = Classification(("a", "b", "c"))

Floats = NDArray[np.float64]

N, M, K = 300, 5, 4
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
LOGITS = 2 * RNG.normal(size=(N, M, K)) + 3 * np.eye(K)[np.where(RNG.random(N) < 0.7, LABELS, 0)][:, None]
Y = torch.tensor(LABELS)


def ensemble(logits: Floats = LOGITS) -> Categorical:
    return Categorical(torch.tensor(logits))


def ece_loop(confidence: Floats, correct: Floats, bins: int = 15) -> float:
    """Σ over bins (low, high] of share × |accuracy − confidence|."""
    error = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


def test_ece_is_the_loop() -> None:
    for bins in [1, 10, 15]:
        rng = np.random.default_rng(bins)
        confidence = np.r_[rng.uniform(0.1, 1, 485), [0.4] * 10, [0.6] * 5, np.ones(20)]  # some on an edge
        for correct in (rng.random(520) < 0.8 * confidence, np.floor(confidence * bins) % 2 == 0):
            # the second errs to the other side in every next bin, so that no two may be merged
            wanted = ece_loop(confidence, correct.astype(float), bins)
            assert expected_calibration_error(confidence, correct, bins) == pytest.approx(wanted)


def test_ece_by_hand() -> None:
    assert expected_calibration_error([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0]) == pytest.approx(0.25)
    # 1.0 and 0.95 share the last of 15 bins: mean confidence .975, accuracy .5
    assert expected_calibration_error([1.0, 0.95], [0, 1]) == pytest.approx(0.475)
    # .5 and .6 lie in bins 8 and 10, and do not cancel
    assert expected_calibration_error([0.5, 0.6], [1, 0]) == pytest.approx((0.5 + 0.6) / 2)
    assert expected_calibration_error([0.5, 0.6], [1, 0], bins=1) == pytest.approx(0.05)
    # .6 is the upper edge of bin 9, and so is a sum of three votes of .2, which is above .6 in float64: with .55 in it,
    # mean confidence .5833, accuracy 2/3
    assert expected_calibration_error([0.6, 0.2 + 0.2 + 0.2, 0.55], [1, 1, 0]) == pytest.approx(2 / 3 - 1.75 / 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), count=st.integers(1, 30))
def test_ece_is_a_share_and_the_loop_everywhere(data: st.DataObject, count: int) -> None:
    # the ends of bins are left out: there the loop and the product of floats may choose either side
    grid = st.integers(0, 1499).map(lambda tick: (tick + 0.5) / 1500) | st.just(1.0)
    confidence = np.array(data.draw(st.lists(grid, min_size=count, max_size=count)))
    correct = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), float)
    found = expected_calibration_error(confidence, correct)
    assert 0 <= found <= 1
    assert found == pytest.approx(ece_loop(confidence, correct), abs=1e-12)


def test_the_ensembles_figures_are_those_of_its_mean_probability() -> None:
    figures = TASK.figures(prediction_rows(TASK, ensemble(), Y))
    mean = softmax(LOGITS, axis=-1).mean(1)
    correct = mean.argmax(-1) == LABELS
    assert list(figures) == list(TASK.figures_shown)
    assert figures["accuracy"] == pytest.approx(correct.mean())
    assert figures["nll"] == pytest.approx(log_loss(LABELS, mean))
    assert figures["brier"] == pytest.approx(
        sum(brier_score_loss(np.equal(LABELS, k), mean[:, k]) for k in range(K))  # two-class scores of each class
    )
    assert figures["ece"] == pytest.approx(ece_loop(mean.max(-1), correct.astype(float)))
    assert figures["total_uncertainty"] == pytest.approx(entropy(mean, axis=-1).mean())
    assert figures["data_uncertainty"] == pytest.approx(entropy(softmax(LOGITS, axis=-1), axis=-1).mean())
    assert figures["model_uncertainty"] == pytest.approx(
        entropy(mean, axis=-1).mean() - entropy(softmax(LOGITS, axis=-1), axis=-1).mean()
    )


def test_an_average_of_logits_judges_the_pooled_logits() -> None:
    figures = TASK.figures(prediction_rows(TASK, Categorical(torch.tensor(LOGITS), average="logits"), Y))
    mean = softmax(LOGITS.mean(1), axis=-1)
    assert figures["nll"] == pytest.approx(log_loss(LABELS, mean))
    assert figures["accuracy"] == pytest.approx((mean.argmax(-1) == LABELS).mean())


def test_the_member_is_the_mean_over_members_of_each_ones_own() -> None:
    found = TASK.figures(member_rows(TASK, ensemble(), Y))
    each = [TASK.figures(prediction_rows(TASK, ensemble(LOGITS[:, m : m + 1]), Y)) for m in range(M)]
    for name in TASK.figures_shown:
        own = [figures[name] for figures in each]
        if name == "model_uncertainty":
            assert found[name] is None
            assert own == [None] * M
        else:
            assert found[name] == pytest.approx(np.mean(np.array(own, float))), name
    p = softmax(LOGITS, axis=-1)
    pooled_bins = expected_calibration_error(p.max(-1).ravel(), (p.argmax(-1) == LABELS[:, None]).ravel())
    assert found["ece"] is not None
    assert found["ece"] > pooled_bins + 1e-3  # each member's own bins: errors of opposite sign do not cancel


def test_brier_goes_from_zero_to_two() -> None:
    certain = torch.tensor([[[1e4, 0.0, 0.0]]], dtype=torch.float64)
    uniform = torch.zeros(1, 1, 3, dtype=torch.float64)
    for logits, y, brier in ((certain, 0, 0), (certain, 1, 2), (uniform, 2, 2 / 3)):
        figures = TASK.figures(prediction_rows(TASK, Categorical(logits), torch.tensor([y])))
        assert figures["brier"] == pytest.approx(brier)


def test_certain_mistakes_have_finite_nll() -> None:
    logits = np.zeros((1, 2, 3))
    logits[:, :, 0] = 1e4
    figures = TASK.figures(prediction_rows(TASK, ensemble(logits), torch.tensor([1])))
    assert figures["nll"] == pytest.approx(1e4)  # clamped probabilities would say 16 or 36
    assert figures["ece"] == pytest.approx(1)


def test_rows_are_those_of_a_loop() -> None:
    rows = prediction_rows(TASK, ensemble(), Y)
    for b in range(0, N, 29):
        p = [softmax(LOGITS[b, m]) for m in range(M)]
        mean = sum(p) / M
        assert rows["prediction"][b] == mean.argmax()
        assert rows["confidence"][b] == pytest.approx(mean.max())
        assert rows["nll"][b] == pytest.approx(-math.log(mean[LABELS[b]]))
        assert rows["brier"][b] == pytest.approx(sum((mean[k] - (k == LABELS[b])) ** 2 for k in range(K)))
        assert rows["model_uncertainty"][b] == pytest.approx(entropy(mean) - np.mean([entropy(q) for q in p]))
    members = member_rows(TASK, ensemble(), Y)
    assert {values.shape for values in members.values()} == {(N, M)}
    np.testing.assert_allclose(members["nll"], -log_softmax(LOGITS, axis=-1)[np.arange(N), :, LABELS])


def test_batches_of_rows_join_to_the_whole() -> None:
    whole = prediction_rows(TASK, ensemble(), Y)
    parts = concatenate(prediction_rows(TASK, ensemble(LOGITS[i : i + 70]), Y[i : i + 70]) for i in range(0, N, 70))
    assert parts.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-12)
    assert prefixed("student", whole)["student_nll"] is whole["nll"]


def test_without_labels_only_uncertainties_are_told() -> None:
    figures = TASK.figures(prediction_rows(TASK, ensemble(), None))
    unknown = {"accuracy", "nll", "brier", "ece"}
    assert {name for name, value in figures.items() if value is None} == unknown
    members = TASK.figures(member_rows(TASK, ensemble(), None))
    assert {name for name, value in members.items() if value is None} == {*unknown, "model_uncertainty"}


def test_a_single_head_has_no_model_uncertainty_rather_than_none_of_it() -> None:
    figures = TASK.figures(prediction_rows(TASK, ensemble(LOGITS[:, :1]), Y))
    assert figures["model_uncertainty"] is None
    assert figures["total_uncertainty"] == figures["data_uncertainty"]


def test_every_figure_is_json() -> None:
    constant = ensemble(np.zeros((4, 2, K)))
    rows, members = prediction_rows(TASK, constant, Y[:4]), member_rows(TASK, constant, Y[:4])
    single = prediction_rows(TASK, ensemble(np.zeros((4, 1, K))), None)
    document = [TASK.figures(rows), TASK.figures(members), TASK.figures(single), detection(rows, rows)]
    document += [detection(members, members), detection(single, single)]
    json.dumps(document, allow_nan=False)
    assert detection(rows, rows) == {"total_uncertainty": 0.5, "model_uncertainty": 0.5}
