"""Losses and solutions where members do not answer every row, against those of each row by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from methods_helpers import FIRST, B, K, M, a_student, outputs, said
from torch.testing import assert_close

from ensemble_distill.methods import open_method
from ensemble_distill.methods.ban import teacher_loss
from ensemble_distill.methods.hydra import deviation_loss, members_loss
from ensemble_distill.methods.kd import pooled_loss
from ensemble_distill.methods.method import Batch
from ensemble_distill.predictive import open_family
from ensemble_distill.predictive.answered import those_who_answer
from ensemble_distill.students.heads import Heads

FAMILY = open_family("categorical")


def teacher(z: Any) -> Any:
    return FAMILY.predictive(*those_who_answer(torch.tensor(z), None), "probabilities")


def silenced(seed: int = 0) -> Any:
    z = outputs("classification", seed=seed)
    there = np.random.default_rng(seed).random((B, M)) < 0.6
    there[np.arange(B), np.arange(B) % M] = True
    return np.where(there[..., None], z, np.nan)


@pytest.mark.parametrize(
    ("heads", "loss"),
    [(M, members_loss(2.0)), (M, deviation_loss(1.5, 3.0)), (1, pooled_loss(2.0)), (1, teacher_loss)],
)
def test_a_loss_is_the_mean_over_rows_of_each_one_s_by_those_who_answer(heads: int, loss: Any) -> None:
    z, s = silenced(), torch.tensor(np.random.default_rng(3).normal(size=(B, heads, K)))
    found = loss(Batch(teacher(z), None), FAMILY.predictive(s, None, "probabilities"), FIRST)
    each = []
    for row in range(B):
        some = np.flatnonzero(~np.isnan(z[row, :, 0]))
        own = torch.tensor(z[[row]][:, some])
        mine = s[[row]][:, some] if heads > 1 else s[[row]]
        members = FAMILY.predictive(own, None, "probabilities")
        each.append(loss(Batch(members, None), FAMILY.predictive(mine, None, "probabilities"), FIRST))
    assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("name", ["endd", "proxy-endd"])
def test_a_dirichlet_is_fitted_to_those_who_answer(name: str) -> None:
    method = open_method(name)
    options = method.timed(method.Options(), 100)
    (stage,) = method.stages(options, M)
    z = outputs("classification")
    z[::2, 0] = np.nan
    numbers = torch.tensor(np.random.default_rng(1).normal(size=(B, 1, K)))
    found = stage.loss(Batch(teacher(z), None), said(method, "classification", numbers), FIRST)
    each = [
        stage.loss(
            Batch(FAMILY.predictive(torch.tensor(z[[row]][:, row % 2 == 0 :]), None, "probabilities"), None),
            said(method, "classification", numbers[[row]]),
            FIRST,
        )
        for row in range(B)
    ]
    assert_close(found, torch.stack(each).mean())


def test_each_head_is_solved_for_from_the_rows_that_its_member_answers() -> None:
    method = open_method("hydra")
    options = method.Options(closed_form=True, ridge=1e-6, hinton_share=0.0)
    (stage,) = method.stages(options, M)
    assert stage.fit is not None
    rng = np.random.default_rng(0)
    student, width = stage.start(a_student()), 5
    student.heads = Heads(M, width, (), K).double()
    features = rng.normal(size=(40, width))
    maps = rng.normal(size=(M, width, K))
    z = np.einsum("bf,mfk->bmk", features, maps) + np.arange(M)[:, None]
    z -= z.mean(-1, keepdims=True)
    there = np.arange(M) == (np.arange(40) % M)[:, None]
    said_of_rows = np.where(there[..., None], z, np.nan)
    batches = [
        (torch.tensor(features[at : at + 7]), Batch(teacher(said_of_rows[at : at + 7]), None)) for at in range(0, 40, 7)
    ]
    with torch.no_grad():
        stage.fit(student, batches)
        solved = student.heads(torch.tensor(features))
    assert_close(solved - solved.mean(-1, keepdim=True), torch.tensor(z), atol=1e-3, rtol=1e-3)
