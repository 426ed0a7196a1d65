"""Each head against its member, and the rows where a student is farthest off: against NumPy."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from ensemble_distill.evaluation.each_head import MOST, HeadByHead
from ensemble_distill.predictive.answered import those_who_answer
from ensemble_distill.predictive.categorical import Categorical

ROWS, MEMBERS, CLASSES, BATCH = 40, 3, 5, 16


def test_the_farthest_rows_are_kept_and_no_batch_with_them() -> None:
    random = np.random.default_rng(0)
    theirs, own = random.normal(size=(2, ROWS, MEMBERS, CLASSES))
    found = HeadByHead()
    for start in range(0, ROWS, BATCH):
        some = slice(start, start + BATCH)
        ensemble, student = (Categorical(torch.tensor(logits[some])) for logits in (theirs, own))
        found.add(torch.arange(ROWS)[some] + 100, ensemble, student)
    p, q = softmax(theirs, -1), softmax(own, -1)
    kl = (p * (log_softmax(theirs, -1) - log_softmax(own, -1))).sum(-1)
    each = found.found()
    assert each.kl is not None
    np.testing.assert_allclose(each.kl, kl.mean(0))
    collapsed = (p * (log_softmax(theirs, -1) - np.log(q.mean(1, keepdims=True)))).sum(-1)
    assert each.collapsed_kl is not None
    np.testing.assert_allclose(each.collapsed_kl, collapsed.mean(0))
    apart = entropy(p.mean(1), q.mean(1), axis=-1)
    order = np.argsort(-apart)[:MOST]
    assert [row.row for row in each.farthest] == (order + 100).tolist()
    for row, at in zip(each.farthest, order, strict=True):
        np.testing.assert_allclose(row.mean_kl, apart[at])
        np.testing.assert_allclose(row.ensemble, p[at].mean(0))
        np.testing.assert_allclose(row.student, q[at].mean(0))
        np.testing.assert_allclose(row.members, p[at])
        np.testing.assert_allclose(row.heads, q[at])
        held = row.members.base
        assert held is None or held.size <= MOST * MEMBERS * CLASSES


def test_a_member_of_weight_0_is_not_shown() -> None:
    logits, own = np.random.default_rng(1).normal(size=(2, ROWS, MEMBERS, CLASSES))
    weights = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    each, without = HeadByHead(), HeadByHead()
    each.add(torch.arange(ROWS), Categorical(torch.tensor(logits), weights), Categorical(torch.tensor(own), weights))
    rest = [Categorical(torch.tensor(np.delete(said, 1, 1))) for said in (logits, own)]
    without.add(torch.arange(ROWS), *rest)
    for key in ("kl", "collapsed_kl"):
        kl, theirs = getattr(each.found(), key), getattr(without.found(), key)
        np.testing.assert_allclose(kl, [theirs[0], np.nan, theirs[1]])
    for row, same in zip(each.found().farthest, without.found().farthest, strict=True):
        assert row.row == same.row
        assert np.isnan(row.members[1]).all()
        assert not np.isnan(row.members[[0, 2]]).any()


def test_a_row_is_as_far_off_as_the_heads_of_those_who_answer_it() -> None:
    random = np.random.default_rng(2)
    theirs, own = random.normal(size=(2, ROWS, MEMBERS, CLASSES))
    silent = np.arange(MEMBERS) == (np.arange(ROWS) % (MEMBERS + 1))[:, None]
    outputs = torch.tensor(np.where(silent[..., None], np.nan, theirs))
    found = HeadByHead()
    for start in range(0, ROWS, BATCH):
        some = slice(start, start + BATCH)
        ensemble, student = Categorical(*those_who_answer(outputs[some], None)), Categorical(torch.tensor(own[some]))
        found.add(torch.arange(ROWS)[some], ensemble, student)
    share = ~silent[..., None] / (~silent).sum(1)[:, None, None]
    p, q = ((share * softmax(logits, -1)).sum(1) for logits in (theirs, own))
    each, order = found.found(), np.argsort(-entropy(p, q, axis=-1))[:MOST]
    assert [row.row for row in each.farthest] == order.tolist()
    for row, at in zip(each.farthest, order, strict=True):
        np.testing.assert_allclose(row.mean_kl, entropy(p[at], q[at]))
        np.testing.assert_allclose(row.student, q[at])
        np.testing.assert_array_equal(np.isnan(row.members).all(-1), silent[at])
    kl = entropy(softmax(theirs, -1), softmax(own, -1), axis=-1)
    np.testing.assert_allclose(each.kl, np.where(silent, 0, kl).sum(0) / (~silent).sum(0))
