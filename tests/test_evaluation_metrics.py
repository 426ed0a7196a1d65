"""Quality figures, OOD detection and cost against independent loops; null where they do not apply, never NaN."""

import itertools
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor, nn

from ensemble_distill.evaluation.cost import cost
from ensemble_distill.evaluation.metrics import NAMES, classification, expected_calibration_error
from ensemble_distill.evaluation.ood import detection
from ensemble_distill.evaluation.rows import concatenate, member_rows, prediction_rows, prefixed
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.students.heads import Heads
from ensemble_distill.students.student import Student

Floats = NDArray[np.float64]

N, M, K = 300, 5, 4
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, K, N)
LOGITS = 2 * RNG.normal(size=(N, M, K)) + 3 * np.eye(K)[np.where(RNG.random(N) < 0.7, LABELS, 0)][:, None]
Y = torch.tensor(LABELS)


def ensemble(logits: Floats = LOGITS) -> Categorical:
    return Categorical(torch.tensor(logits))


def ece_loop(confidence: Floats, correct: Floats, bins: int = 15) -> float:
    """Σ over bins of share × |accuracy − confidence|, the last bin closed on both sides."""
    error = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (index == bins - 1 and c == 1)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


# --- quality ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_loop(bins: int) -> None:
    rng = np.random.default_rng(bins)
    confidence = np.r_[rng.uniform(0.1, 1, 500), np.ones(20)]
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
    figures = classification(prediction_rows(ensemble(), Y))
    mean = softmax(LOGITS, axis=-1).mean(1)
    correct = mean.argmax(-1) == LABELS
    assert list(figures) == list(NAMES)
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
    figures = classification(prediction_rows(Categorical(torch.tensor(LOGITS), average="logits"), Y))
    mean = softmax(LOGITS.mean(1), axis=-1)
    assert figures["nll"] == pytest.approx(log_loss(LABELS, mean))
    assert figures["accuracy"] == pytest.approx((mean.argmax(-1) == LABELS).mean())


def test_the_member_is_the_mean_over_members_of_each_ones_own() -> None:
    found = classification(member_rows(ensemble(), Y))
    each = [classification(prediction_rows(ensemble(LOGITS[:, m : m + 1]), Y)) for m in range(M)]
    for name in NAMES:
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
        figures = classification(prediction_rows(Categorical(logits), torch.tensor([y])))
        assert figures["brier"] == pytest.approx(brier)


def test_certain_mistakes_have_finite_nll() -> None:
    logits = np.zeros((1, 2, 3))
    logits[:, :, 0] = 1e4
    figures = classification(prediction_rows(ensemble(logits), torch.tensor([1])))
    assert figures["nll"] == pytest.approx(1e4)  # clamped probabilities would say 16 or 36
    assert figures["ece"] == pytest.approx(1)


def test_rows_are_those_of_a_loop() -> None:
    rows = prediction_rows(ensemble(), Y)
    for b in range(0, N, 29):
        p = [softmax(LOGITS[b, m]) for m in range(M)]
        mean = sum(p) / M
        assert rows["prediction"][b] == mean.argmax()
        assert rows["confidence"][b] == pytest.approx(mean.max())
        assert rows["nll"][b] == pytest.approx(-math.log(mean[LABELS[b]]))
        assert rows["brier"][b] == pytest.approx(sum((mean[k] - (k == LABELS[b])) ** 2 for k in range(K)))
        assert rows["model_uncertainty"][b] == pytest.approx(entropy(mean) - np.mean([entropy(q) for q in p]))
    members = member_rows(ensemble(), Y)
    assert {values.shape for values in members.values()} == {(N, M)}
    np.testing.assert_allclose(members["nll"], -log_softmax(LOGITS, axis=-1)[np.arange(N), :, LABELS])


def test_batches_of_rows_join_to_the_whole() -> None:
    whole = prediction_rows(ensemble(), Y)
    parts = concatenate(prediction_rows(ensemble(LOGITS[i : i + 70]), Y[i : i + 70]) for i in range(0, N, 70))
    assert parts.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-12)
    assert prefixed("student", whole)["student_nll"] is whole["nll"]


def test_without_labels_only_uncertainties_are_told() -> None:
    figures = classification(prediction_rows(ensemble(), None))
    unknown = {"accuracy", "nll", "brier", "ece"}
    assert {name for name, value in figures.items() if value is None} == unknown
    members = classification(member_rows(ensemble(), None))
    assert {name for name, value in members.items() if value is None} == {*unknown, "model_uncertainty"}


def test_a_single_head_has_no_model_uncertainty_rather_than_none_of_it() -> None:
    figures = classification(prediction_rows(ensemble(LOGITS[:, :1]), Y))
    assert figures["model_uncertainty"] is None
    assert figures["total_uncertainty"] == figures["data_uncertainty"]


# --- out of distribution ----------------------------------------------------------------------------------


def auroc_loop(inside: Floats, outside: Floats) -> float:
    """The share of pairs in which the outside row scores higher, ties counting half."""
    pairs = [(a, b) for a, b in itertools.product(inside, outside)]
    return sum(1.0 if b > a else 0.5 if b == a else 0.0 for a, b in pairs) / len(pairs)


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(1)
    inside = {name: np.round(rng.gamma(2, 1, 60), 1) for name in ("total_uncertainty", "model_uncertainty")}
    outside = {name: np.round(rng.gamma(3, 1, 40), 1) for name in inside}  # scores above 1, with ties
    found = detection(inside, outside)
    for name, value in found.items():
        assert value == pytest.approx(auroc_loop(inside[name], outside[name]))
        assert 0.5 < auroc_loop(inside[name], outside[name]) < 1


def test_auroc_of_members_is_the_mean_of_each_ones_own() -> None:
    rng = np.random.default_rng(2)
    inside, outside = (
        {"total_uncertainty": rng.random((50, 3))},
        {"total_uncertainty": rng.random((30, 3)) + np.array([0, 0.3, 5])},
    )
    found = detection(inside, outside)
    own = [auroc_loop(inside["total_uncertainty"][:, m], outside["total_uncertainty"][:, m]) for m in range(3)]
    assert found["total_uncertainty"] == pytest.approx(np.mean(own))
    assert own[2] == 1
    assert found["model_uncertainty"] is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    inside=arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 5).map(float)),
    outside=arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 5).map(float)),
)
def test_auroc_mirrors(inside: Floats, outside: Floats) -> None:
    def area(a: Floats, b: Floats) -> float:
        found = detection({"total_uncertainty": a}, {"total_uncertainty": b})["total_uncertainty"]
        assert found is not None
        return found

    assert area(inside, outside) == pytest.approx(auroc_loop(inside, outside))
    assert area(inside, outside) + area(outside, inside) == pytest.approx(1)
    assert area(inside, inside) == pytest.approx(0.5)


def test_every_figure_is_json() -> None:
    constant = ensemble(np.zeros((4, 2, K)))
    rows, members = prediction_rows(constant, Y[:4]), member_rows(constant, Y[:4])
    single = prediction_rows(ensemble(np.zeros((4, 1, K))), None)
    document = [classification(rows), classification(members), classification(single), detection(rows, rows)]
    document += [detection(members, members), detection(single, single)]
    json.dumps(document, allow_nan=False)
    assert detection(rows, rows) == {"total_uncertainty": 0.5, "model_uncertainty": 0.5}


# --- cost -------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Torch's own attention, which has fused kernels in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(1, 10, 4, 4).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)


SEQUENCE = (10, 16)  # positions, features
ATTENTION = 2 * 10 * 10 * 16  # scores, and their sums
PROJECTIONS = 10 * 16 * 16 * 4


@pytest.mark.parametrize(
    ("module", "shape", "parameters", "macs"),
    [
        (nn.Linear(20, 30), (20,), 20 * 30 + 30, 20 * 30),
        (nn.Conv2d(3, 8, 5, padding=2, stride=2), (3, 16, 16), 8 * 3 * 25 + 8, 8 * 3 * 25 * 8 * 8),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 8, 8), 4 * 9, 4 * 9 * 6 * 6),
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (6,), 35 + 10 + 12, 30 + 10),
        (Heads(7, 6, (5,), 3), (6,), 7 * (6 * 5 + 5 + 5 * 3 + 3), 7 * (6 * 5 + 5 * 3)),
        (Student(nn.Linear(6, 4), Heads(7, 4, (), 3)), (6,), 28 + 7 * 15, 24 + 7 * 12),
        (Products(), SEQUENCE, 0, ATTENTION),
        (Attention(), SEQUENCE, 4 * (16 * 16 + 16), PROJECTIONS + ATTENTION),
        (
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
            SEQUENCE,
            4 * (16 * 16 + 16) + 2 * 16 * 32 + 48 + 4 * 16,
            PROJECTIONS + ATTENTION + 2 * 10 * 16 * 32,
        ),
        (nn.LSTM(16, 8, batch_first=True), SEQUENCE, 4 * 8 * (16 + 8 + 2), 10 * 4 * 8 * (16 + 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_parameters_and_macs_of_known_layers(
    module: nn.Module, shape: tuple[int, ...], parameters: int, macs: int
) -> None:
    figures = cost([module.eval()], [torch.zeros(1, *shape)])
    assert figures["parameters"] == parameters
    assert figures["macs"] == macs
    assert figures["latency_ms"] is not None
    assert figures["latency_ms"] > 0


def test_an_ensembles_cost_is_its_members_sum() -> None:
    members = [nn.Linear(20, 30).eval(), nn.Conv2d(3, 8, 5).eval()]
    inputs = [torch.zeros(1, 20), torch.zeros(1, 3, 9, 9)]
    together, each = cost(members, inputs), [cost([m], [x]) for m, x in zip(members, inputs, strict=True)]
    for name in ("parameters", "macs"):
        assert together[name] == sum(figures[name] or 0 for figures in each)
    with pytest.raises(ValueError, match="shorter"):
        cost(members, inputs[:1])


def test_tied_weights_count_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    assert cost([nn.Sequential(first, second)], [torch.zeros(1, 6)])["parameters"] == 36 + 12


def test_measuring_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def state() -> Iterator[object]:
        yield torch.backends.mha.get_fastpath_enabled()
        yield torch.backends.mkldnn.enabled
        yield torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]

    before = list(state())
    cost([nn.Linear(2, 2)], [torch.zeros(1, 2)])
    assert list(state()) == before

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cost([Fails()], [torch.zeros(1, 2)])
    assert list(state()) == before
    assert threads == [1, 3, 1, 3]


def test_latency_grows_with_the_work() -> None:
    def latency(width: int) -> float:
        found = cost([nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))], [torch.zeros(1, width)])
        assert found["latency_ms"] is not None
        return found["latency_ms"]

    assert latency(1500) > 3 * latency(4)
