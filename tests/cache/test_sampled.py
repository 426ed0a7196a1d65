"""Records of drawn ids: unbiased for each member, by enumeration of every draw there is; and few bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from tiny import refused
from torch import Tensor

from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.sampled_records import weighed
from ensemble_distill.caching import drawing
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.predictive.sampled import Sampled

CLASSES, MEMBERS = 9, 3
Numbers = NDArray[np.float64]


def members(spread: float, seed: int = 0) -> NDArray[np.float32]:
    """Logits (M, K) of a row."""
    drawn = np.random.default_rng(seed)
    return (spread * (drawn.normal(size=CLASSES) + 0.5 * drawn.normal(size=(MEMBERS, CLASSES)))).astype(np.float32)


def every_draw(q: Numbers, n: int) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Each set of ids that can be drawn of q (K,), and its probability: ids change only where a point of the systematic
    sample passes the end of a class."""
    pi = drawing.inclusion(q[None], n)[0]
    pi[q.argmax()] = 0
    ends = np.unique(np.concatenate([[0, 1], pi.cumsum() % 1]))
    for low, high in itertools.pairwise(ends):
        yield high - low, drawing.drawn_ids(q[None], n, np.array([(low + high) / 2]))[0]


def recorded(
    logits: NDArray[np.float32], ids: NDArray[np.int64], dtype: str = "float32", weights: Tensor | None = None
) -> Sampled:
    """What is read of a record of a row of members (M, K) at these ids."""
    n, p = len(ids), drawing.probabilities(logits)
    q = drawing.pooled(p)
    drawn = np.concatenate([ids, q[ids], drawing.thresholds(q[None], n)])[None, None]
    said = np.stack([drawing.ratios(one[None], ids[None], q[ids][None]) for one in p], 1)
    of_ids, of_said = Format("drawn", (2 * n + 1,), "uint16"), Format("sampled", (n + 1,), dtype)
    there = of_ids.decode(of_ids.encode(drawn[0]))[:, None]
    kept = np.stack([of_said.decode(of_said.encode(said[:, m])) for m in range(len(p))], 1)
    return Sampled.of(torch.from_numpy(weighed(kept, there)).double(), weights)


def loss_and_gradient(teacher: Predictive, raw: Tensor, member: int | None) -> tuple[Tensor, Tensor]:
    """Of one member's divergence, or of the pooled one's where that is None."""
    raw = raw.clone().requires_grad_()
    loss = (teacher.pooled() if member is None else teacher).kl(Categorical(raw))[0, member or 0]
    (gradient,) = torch.autograd.grad(loss, raw)
    return loss.detach(), gradient


def expected(
    logits: NDArray[np.float32], raw: Tensor, member: int | None, draws: list[tuple[float, Sampled]]
) -> tuple[Numbers, Numbers]:
    loss, gradient = np.zeros(()), np.zeros(raw.shape)
    for share, teacher in draws:
        one, other = loss_and_gradient(teacher, raw, member)
        loss, gradient = loss + share * one.numpy(), gradient + share * other.numpy()
    return loss, gradient


# --- what is drawn ----------------------------------------------------------------------------------------------


@given(st.integers(2, CLASSES - 1), st.sampled_from([0.0, 1.0, 4.0, 40.0]), st.integers(0, 50))
def test_each_id_is_drawn_as_often_as_it_counts_for(n: int, spread: float, seed: int) -> None:
    q = drawing.pooled(drawing.probabilities(members(spread, seed)))
    found = np.zeros(CLASSES)
    for share, ids in every_draw(q, n):
        assert len(set(ids.tolist())) == n
        assert ids[0] == q.argmax()
        found[ids] += share
    pi = drawing.inclusion(q[None], n)[0]
    assert_allclose(found, pi, atol=1e-9)
    assert pi.sum() == pytest.approx(n)
    # proportional to q but for those that are certain
    others = pi < 1
    if others.any():
        assert_allclose(pi[others] / q[others], pi[others].sum() / q[others].sum())


def test_impossible_classes_are_drawn_where_there_are_no_others() -> None:
    q = np.maximum(np.eye(6)[2], drawing.LEAST)
    for share, ids in every_draw(q, 3):
        assert share > 0
        assert ids[0] == 2
        assert len(set(ids.tolist())) == 3


def test_repeats_by_rounding_are_replaced_by_others() -> None:
    pi = np.array([0.5, 1.0, 1.0, 0.5, 0.0])
    found = drawing._different(np.array([1, 1, 5]), pi, first=4)
    assert found.tolist() == [0, 1, 2]


def test_every_row_in_every_view_of_every_split_is_drawn_by_numbers_of_its_own() -> None:
    places = [(0, "train", 0, 0), (1, "train", 0, 0), (0, "transfer", 0, 0), (0, "train", 1, 0), (0, "train", 0, 1)]
    drawn = np.stack([drawing.uniforms_of(*place, 40) for place in places])
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert len(np.unique(drawn)) == drawn.size
    assert_allclose(drawing.uniforms_of(*places[3], 40), drawn[3], rtol=0)


# --- what is learned from it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [*range(MEMBERS), None])
@pytest.mark.parametrize(("spread", "n"), [(2.0, 2), (2.0, 4), (0.3, 2)])
def test_loss_and_gradient_are_those_of_all_classes_on_average(spread: float, n: int, member: int | None) -> None:
    """Also where the likeliest class, which is certain, is not likely enough to be certain otherwise."""
    logits = members(spread)
    raw = torch.randn(1, 1, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q = drawing.pooled(drawing.probabilities(logits))
    assert (q.max() > drawing.thresholds(q[None], n)[0]) == (spread > 1)
    draws = [(share, recorded(logits, ids)) for share, ids in every_draw(q, n)]
    assert len(draws) > 2
    whole = Categorical(torch.from_numpy(logits).double()[None])
    loss, gradient = loss_and_gradient(whole, raw, member)
    found = expected(logits, raw, member, draws)
    assert_allclose(found[0], loss, rtol=1e-5)
    assert_allclose(found[1], gradient, atol=1e-6)

    # of the likeliest n, as far as they are normalized or not, they are not
    top = np.argsort(-q)[:n]
    p = drawing.probabilities(logits)
    p = p.mean(0) if member is None else p[member]
    for share in (p[top], p[top] / p[top].sum()):
        target = np.zeros(CLASSES)
        target[top] = share
        biased = target.sum() * raw[0, 0].softmax(0).numpy() - target
        assert np.abs(biased - gradient.numpy()[0, 0]).max() > 0.01


def test_a_perfect_copy_has_no_loss_whatever_was_drawn() -> None:
    logits = members(2.0)
    whole = Categorical(torch.from_numpy(logits).double()[None])
    for _, ids in every_draw(drawing.pooled(drawing.probabilities(logits)), 3):
        teacher = recorded(logits, ids)
        assert_allclose(teacher.kl(whole), 0, atol=1e-6)
        assert_allclose(teacher.pooled().kl(whole.pooled()), 0, atol=1e-6)


def test_no_ratio_is_above_the_number_of_members() -> None:
    logits = np.zeros((MEMBERS, CLASSES), np.float32)
    logits[:, 4] = (30, -30, -30)
    p = drawing.probabilities(logits)
    q = drawing.pooled(p)
    assert (p / q).max() <= MEMBERS
    assert (p / q).max() == pytest.approx(MEMBERS, rel=1e-6)


def test_float16_rounds_a_weight_by_a_twentieth_of_a_percent_at_most() -> None:
    logits = members(4.0)
    ids = next(ids for _, ids in every_draw(drawing.pooled(drawing.probabilities(logits)), 5))
    whole, half = (recorded(logits, ids, dtype) for dtype in ("float32", "float16"))
    assert_allclose(half.weight, whole.weight, rtol=5e-4)
    assert_allclose(half.log_p, whole.log_p, atol=1e-3)


def test_the_largest_probability_is_exact() -> None:
    logits = members(1.0)
    p = drawing.probabilities(logits)
    for _, ids in every_draw(drawing.pooled(p), 2):
        teacher = recorded(logits, ids)
        assert_allclose(teacher.top[0], p.max(1), rtol=1e-6)
        assert_allclose(teacher.pooled().top[0, 0], p.mean(0).max(), rtol=1e-5)


def test_members_count_by_their_weights() -> None:
    logits, share = members(2.0), torch.tensor([1.0, 2.0, 5.0])
    raw = torch.randn(1, 1, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    total = np.zeros(())
    for chance, ids in every_draw(drawing.pooled(drawing.probabilities(logits)), 3):
        total = total + chance * recorded(logits, ids, weights=share).pooled().kl(Categorical(raw))[0, 0].numpy()
    whole = Categorical(torch.from_numpy(logits).double()[None], share)
    assert_allclose(total, whole.pooled().kl(Categorical(raw))[0, 0], rtol=1e-5)


def test_a_member_for_whom_an_id_is_impossible_adds_nothing_to_its_probability() -> None:
    logits, ids = members(1.0), np.arange(4)
    logits[0, 1] = logits[:, 2] = -1e4
    found = recorded(logits, ids).mixture()
    p = drawing.probabilities(logits).mean(0)[ids]
    assert_allclose(found.log_p[0, 0, [0, 1, 3]], np.log(p[[0, 1, 3]]), rtol=1e-5)
    assert found.weight[0, 0, 2] == 0
    assert found.log_p.isfinite().all()


ASKED: dict[str, Callable[[Sampled], object]] = {
    "a temperature of 2": lambda one: one.tempered(2.0),
    "all probabilities": lambda one: one.means(),
    "an entropy": lambda one: one.summary(),
    "the probability of a label": lambda one: one.nll(torch.zeros(1, dtype=torch.int64)),
    "how members deviate": lambda one: one.deviation_error(one),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_needs_all_classes_is_refused(what: str) -> None:
    with refused(what, 'cache.records = "dense"'):
        ASKED[what](recorded(members(1.0), np.array([0, 1, 2])))


def test_bytes_of_a_position() -> None:
    """12 ids of 33,000: 26 a member and 76 for all, instead of 66,004 a member."""
    assert Format("sampled", (13,), "float16").record.itemsize == 12 * 2 + 2
    assert Format("drawn", (25,), "uint16").record.itemsize == 12 * (2 + 4) + 4
    assert Format("drawn", (25,), "uint32").record.itemsize == 12 * (4 + 4) + 4
    assert Format("dense", (33_000,), "float16").record.itemsize == 66_004
    assert Format("sampled", (35, 13), "float16").record.itemsize == 35 * 26


def test_a_ratio_that_float16_has_not_is_an_error() -> None:
    with pytest.raises(OverflowError, match="7e\\+04"):
        Format("sampled", (3,), "float16").encode(np.array([[1.0, 7e4, 0.5]]))
