"""Heads in closed form, against scikit-learn and NumPy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_helpers import CLASSES, FEATURES, B, M, a_batch, a_student, stages
from numpy.testing import assert_allclose
from sklearn.linear_model import Ridge as Oracle

from ensemble_distill.predictive.gaussian import GaussianFamily
from ensemble_distill.students.ridge import Ridge

ROWS = 90


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 3.0])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_it_is_scikit_learns_ridge_in_any_cut_of_the_rows(ridge: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    x = offset + rng.normal(size=(ROWS, 4)) * [1, 3, 0.2, 1]
    y = rng.normal(size=(ROWS, M, 2)) + 7
    found = Ridge()
    for rows in np.split(np.arange(ROWS), [1, 30, 77]):
        found.add(torch.tensor(x[rows]), torch.tensor(y[rows]))
    weight, bias = found.solve(ridge)
    assert (weight.shape, bias.shape, found.rows) == ((M, 4, 2), (M, 2), ROWS)
    oracle = Oracle(alpha=ridge * x.var(0).mean() * ROWS).fit(x, y.reshape(ROWS, -1))
    assert_allclose(weight.transpose(1, 2).reshape(-1, 4), oracle.coef_, atol=1e-8)
    assert_allclose(bias.flatten(), oracle.intercept_, atol=1e-6)


def test_features_of_another_unit_give_the_same_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) for shape in ((5,), (M, 3)))
    said = []
    for unit in (1e-3, 1.0, 1e3):
        found = Ridge()
        found.add(unit * x, y)
        weight, bias = found.solve(1e-2)
        said.append(torch.einsum("bi,mio->bmo", unit * x, weight) + bias)
    assert_allclose(said[0], said[1], atol=1e-6)
    assert_allclose(said[2], said[1], atol=1e-6)


def test_through_a_bottleneck_it_is_the_regression_on_what_comes_through() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, shared = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((ROWS, 6), (ROWS, 4), (6, 2)))
    x[:, 1] += x[:, 0]
    found = Ridge()
    for part in torch.arange(ROWS).split(17):
        found.add(x[part], y[part].view(-1, 2, 2))
    own, bias = found.through(found.solution(1e-9), 1e-9, shared)
    said = torch.einsum("br,mro->bmo", x @ shared, own) + bias
    design = np.c_[x @ shared, np.ones(ROWS)]
    wanted = design @ np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert_allclose(said.flatten(1), wanted, atol=1e-6)


def test_features_that_are_constant_leave_the_mean() -> None:
    found = Ridge()
    y = torch.randn(ROWS, M, 2, dtype=torch.float64)
    found.add(torch.full((ROWS, 3), 4.0, dtype=torch.float64), y)
    weight, bias = found.solve(1e-4)
    assert_allclose(torch.full((3,), 4.0, dtype=torch.float64) @ weight + bias, y.mean(0), atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_hydras_second_phase_begins_at_the_least_squares_solution(task: str) -> None:
    _, second = stages("hydra", closed_form=True, ridge=1e-9)
    student = second.start(a_student("hydra", task))
    if task == "regression":
        student.family = GaussianFamily(3.0, 2.0)
    batches = [(torch.randn(B, FEATURES, dtype=torch.float64), a_batch(task, seed=seed)) for seed in range(20)]
    assert second.fit is not None
    with torch.no_grad():
        second.fit(student, ((student.body(x), batch) for x, batch in batches))
        x = torch.cat([x for x, _ in batches])
        seen = student.heads.hidden(student.body(x))[:, 0]
        raw = student.heads(student.body(x))
    wanted = []
    for _, batch in batches:
        if task == "classification":
            wanted.append(batch.teacher.logits - batch.teacher.logits.mean(-1, keepdim=True))  # type: ignore[attr-defined]
        else:
            mean, log_variance = batch.teacher.mean, batch.teacher.log_variance  # type: ignore[attr-defined]
            wanted.append(torch.stack([(mean - 3) / 2, log_variance - np.log(4)], -1))
    design = np.c_[seen, np.ones(len(x))]
    target = torch.cat(wanted).reshape(len(x), -1).numpy()
    solution = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert raw.shape == (20 * B, M, CLASSES[task] or 2)
    assert_allclose(raw.reshape(len(x), -1), solution, atol=1e-4)
    assert np.abs(raw.reshape(len(x), -1).numpy() - target).mean() > 0.1  # no perfect fit: it is least squares


def test_closed_form_can_be_left_out_and_so_can_the_first_phase() -> None:
    assert [stage.fit is None for stage in stages("hydra", closed_form=True)] == [True, False]
    assert [stage.fit for stage in stages("hydra")] == [None, None]
    (only,) = stages("hydra", hinton_share=0)
    assert (only.name, only.share) == ("heads", 1)
