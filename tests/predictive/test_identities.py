"""Identities of categorical distributions that hold whatever the logits are, and what is made once of one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose
from predictive_helpers import LABELS, LOGITS, OTHERS, SHAPES, WEIGHTS, Floats, categorical, shares
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy
from torch.testing import assert_close

from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.predictive.protocol import Average

either = pytest.mark.parametrize("kind", SHAPES)


# --- identities -------------------------------------------------------------------------------------------


scores = arrays(np.float64, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(-30, 30))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def weights_for(members: int) -> st.SearchStrategy[Floats | None]:
    return st.none() | arrays(np.float64, members, elements=st.floats(0.01, 1)).map(lambda w: w / w.sum())


@quick
@given(logits=scores)
def test_kl_is_zero_at_equality_and_never_negative(logits: Floats) -> None:
    ours = categorical(logits)
    assert_allclose(ours.kl(ours), 0, atol=1e-12)
    assert_allclose(ours.kl(categorical(logits + 3)), 0, atol=1e-12)
    assert (ours.kl(categorical(logits[..., ::-1].copy())) > -1e-12).all()


@quick
@given(data=st.data(), logits=scores, members=st.integers(1, 5))
def test_clones_have_no_model_uncertainty(data: st.DataObject, logits: Floats, members: int) -> None:
    weights = data.draw(weights_for(members))
    summary = categorical(np.repeat(logits[:, :1], members, axis=1), weights).summary()
    assert_allclose(summary.model, 0, atol=1e-13)
    assert_allclose(summary.total, entropy(softmax(logits[:, 0], axis=-1), axis=-1), atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_permuting_the_members_changes_nothing(data: st.DataObject, logits: Floats) -> None:
    members = logits.shape[1]
    weights = data.draw(weights_for(members))
    order = np.array(data.draw(st.permutations(range(members))))
    moved_weights = None if weights is None else weights[order]
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        before, after = categorical(logits, weights, average), categorical(logits[:, order], moved_weights, average)
        assert_close(before.pooled().logits, after.pooled().logits, rtol=1e-12, atol=1e-12)
        for name in ("mean", "total", "data", "model"):
            found, wanted = getattr(after.summary(), name), getattr(before.summary(), name)
            assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_total_is_data_plus_model_and_within_its_bounds(data: st.DataObject, logits: Floats) -> None:
    weights = data.draw(weights_for(logits.shape[1]))
    summary = categorical(logits, weights).summary()
    mixture = np.average(softmax(logits, axis=-1), axis=1, weights=weights)
    assert_allclose(summary.data + summary.model, entropy(mixture, axis=-1), atol=1e-12)
    assert_allclose(summary.data + summary.model, summary.total, atol=1e-12)
    assert (summary.model >= 0).all()
    assert (summary.model <= entropy(shares(weights, logits.shape[1])) + 1e-12).all()  # no more than which member it is
    assert (summary.total <= np.log(logits.shape[2]) + 1e-12).all()


@quick
@given(logits=scores, first=st.floats(0.1, 10), second=st.floats(0.1, 10))
def test_temperatures_multiply_and_flatten(logits: Floats, first: float, second: float) -> None:
    ours = categorical(logits)
    assert_close(ours.tempered(first).tempered(second).log_probs(), ours.tempered(first * second).log_probs())
    assert_close(ours.tempered(1).log_probs(), ours.log_probs())
    assert (ours.tempered(first + 1).entropy() >= ours.tempered(first).entropy() - 1e-12).all()
    assert_allclose(ours.tempered(1e9).log_probs(), -np.log(logits.shape[2]), atol=1e-6)


@quick
@given(data=st.data(), logits=scores)
def test_all_weight_on_one_member_is_that_member(data: st.DataObject, logits: Floats) -> None:
    only = data.draw(st.integers(0, logits.shape[1] - 1))
    member = categorical(logits[:, only : only + 1])
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        ours = categorical(logits, np.eye(logits.shape[1])[only], average)
        assert_close(ours.pooled().log_probs(), member.log_probs(), rtol=1e-12, atol=1e-12)
        assert_close(ours.summary().total, member.entropy()[:, 0], rtol=1e-12, atol=1e-12)
        assert_close(ours.summary().model, torch.zeros(len(logits), dtype=torch.float64), rtol=0, atol=1e-12)


@quick
@given(data=st.data(), logits=scores)
def test_compensation_identity(data: st.DataObject, logits: Floats) -> None:
    """mean_m KL(p_m ‖ q) = model uncertainty + KL(p̄ ‖ q) for any q: what `diversity_explained` rests on."""
    weights = data.draw(weights_for(logits.shape[1]))
    other = data.draw(arrays(np.float64, (len(logits), 1, logits.shape[2]), elements=st.floats(-30, 30)))
    ours, q = categorical(logits, weights), categorical(other)
    left = ours.member_mean(ours.kl(q))
    assert_close(left, ours.summary().model + ours.pooled().kl(q)[:, 0], rtol=1e-10, atol=1e-10)
    p = softmax(logits, axis=-1)
    loop = [
        sum(w * rel_entr(p[b, m], softmax(other[b, 0])).sum() for m, w in enumerate(shares(weights, logits.shape[1])))
        for b in range(len(logits))
    ]
    assert_allclose(left, loop, rtol=1e-10, atol=1e-10)


def test_positions_are_independent_of_each_other() -> None:
    whole = categorical(LOGITS["positions"], WEIGHTS)
    y = torch.tensor(LABELS["positions"])
    for row, position in itertools.product(range(3), range(2)):
        one = categorical(LOGITS["positions"][row : row + 1, :, position], WEIGHTS)
        assert_close(whole.pooled().logits[row, :, position], one.pooled().logits[0])
        assert_close(whole.nll(y)[row, :, position], one.nll(y[row : row + 1, position])[0])
        assert_close(whole.summary().model[row, position], one.summary().model[0])


@either
def test_the_mixture_of_one_member_is_what_it_says(kind: str) -> None:
    """To the bit, however it is come by; and of a row that nobody answers it is not a number."""
    logits = LOGITS[kind][:, :1].astype(np.float32)
    logits[0, ..., 0] = -np.inf
    alone, weighted = (categorical(logits, weights).mixture().logits for weights in (None, np.ones(1)))
    assert torch.equal(alone, weighted)
    assert_allclose(alone.numpy(), log_softmax(logits, axis=-1), rtol=1e-6)
    unanswered = np.ones((len(logits), 1))
    unanswered[1] = 0
    answered = categorical(logits, unanswered).mixture().logits
    assert torch.equal(answered.isnan().flatten(1).all(1), torch.tensor(unanswered[:, 0] == 0))


@either
def test_what_is_made_once_is_made_anew_where_a_gradient_flows(kind: str) -> None:
    """First asked without a gradient, as by what a training only reports, and then by its loss."""
    logits = torch.tensor(LOGITS[kind], requires_grad=True)
    student, teacher = Categorical(logits), categorical(OTHERS[kind])
    with torch.no_grad():
        teacher.kl(student)
        student.summary()
    teacher.kl(student).sum().backward()
    p, q = (torch.tensor(of[kind]).softmax(-1) for of in (OTHERS, LOGITS))
    assert logits.grad is not None
    assert_close(logits.grad, q - p)
    assert teacher.mixture() is teacher.mixture()
    assert teacher.tempered(2.0).log_probs() is not teacher.log_probs()


@either
def test_what_is_made_once_follows_changes_in_place(kind: str) -> None:
    """Of a loss of the user's, to what it was given or to what it made of that."""
    weights = torch.tensor(WEIGHTS)
    members = Categorical(torch.tensor(LOGITS[kind]), weights)

    def as_new() -> None:
        fresh = Categorical(members.logits.clone(), weights.clone())
        assert torch.equal(members.log_probs(), fresh.log_probs())
        assert torch.equal(members.mixture().logits, fresh.mixture().logits)
        assert torch.equal(members.summary().model, fresh.summary().model)

    as_new()
    members.logits.mul_(0.5)
    as_new()
    weights.square_()
    as_new()
    members.log_probs().exp_()
    members.mixture().logits.zero_()
    members.summary().model.add_(1)
    as_new()
