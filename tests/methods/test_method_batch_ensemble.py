"""BatchEnsemble: its loss is Hydra's, its members begin as one or apart, and part as their targets do."""

from __future__ import annotations

import pytest
import torch
from methods_helpers import FEATURES, FIRST, B, M, a_batch, a_student, raw, said, stages
from torch import nn
from torch.testing import assert_close

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods import open_method
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.students.rank_one import RankOneBody

both_tasks = pytest.mark.parametrize("task", ["classification", "regression"])


@both_tasks
def test_its_losses_are_hydras(task: str) -> None:
    batch = a_batch(task)
    method = open_method("batch-ensemble")
    mine, hydras = stages("batch-ensemble", temperature=2.0), stages("hydra", temperature=2.0)
    for heads, stage, theirs in zip((1, M), mine, hydras, strict=True):
        student = said(method, task, raw(method, task, heads))
        assert_close(stage.loss(batch, student, FIRST), theirs.loss(batch, student, FIRST))


@both_tasks
def test_its_members_begin_as_what_was_learned_of_the_mean(task: str) -> None:
    hinton, members = stages("batch-ensemble")
    student = a_student("batch-ensemble", task)
    assert hinton.start(student) is student
    grown = members.start(student)
    assert isinstance(grown.body, RankOneBody)
    x = torch.randn(B, FEATURES, dtype=torch.float64)
    assert_close(grown(x), student(x).expand(-1, M, -1))


def test_a_share_of_0_is_one_stage_as_in_latentbe() -> None:
    (only,) = stages("batch-ensemble", hinton_share=0)
    assert (only.name, only.share) == ("members", 1)
    hinton, members = stages("batch-ensemble", hinton_share=0.2)
    assert (hinton.share, members.share) == (0.2, 0.8)


def test_the_spread_is_of_the_factors_about_1() -> None:
    *_, members = stages("batch-ensemble", members=50, spread=0.2)
    grown = members.start(a_student("batch-ensemble"))
    factors = torch.cat(
        [p.detach().flatten() for n, p in grown.named_parameters() if n.rpartition(".")[2] in ("r", "s")]
    )
    assert len(factors) == 50 * (FEATURES + 16 + 16 + 8 + 8 + 4)
    assert float(factors.mean()) == pytest.approx(1, abs=0.02)
    assert float(factors.std()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_members_part_towards_their_own_targets(spread: float) -> None:
    torch.manual_seed(0)
    batch = a_batch(rows=32)
    *_, members = stages("batch-ensemble", spread=spread)
    student = members.start(a_student("batch-ensemble"))
    x = torch.randn(32, FEATURES, dtype=torch.float64)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        members.loss(batch, student.predictive(student(x)), FIRST).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        found = student.predictive(student(x))
        own = batch.teacher.kl(found).mean()
        others = batch.teacher.kl(Categorical(student(x).roll(1, 1))).mean()
    assert own < 0.7 * others


def test_it_shares_convolutions_too() -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 16))
    student = a_student("batch-ensemble", body=body)
    batch = a_batch()
    x = torch.randn(B, 1, 4, 4, dtype=torch.float64)
    for stage in stages("batch-ensemble", spread=0.1):
        student = stage.start(student)
        assert stage.loss(batch, student.predictive(student(x)), FIRST).isfinite()
    assert student(x).shape[1] == M


def test_a_body_without_weights_to_share_is_refused() -> None:
    *_, members = stages("batch-ensemble")
    student = a_student("batch-ensemble", body=nn.Sequential(nn.Flatten(), nn.Tanh()))
    with pytest.raises(EdistillError, match=r"without linear or convolutional layers.*or --method hydra"):
        members.start(student)
