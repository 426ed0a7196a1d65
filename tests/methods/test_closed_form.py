"""What single heads begin at where they are solved for: NumPy's least squares of what the method says they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from methods_helpers import FEATURES, WEIGHTS, B, Floats, M, a_batch, a_student, softened, stages
from numpy.testing import assert_allclose
from tiny import refused

from ensemble_distill.methods import method_names, open_method
from ensemble_distill.methods.method import Batch
from ensemble_distill.predictive.gaussian import GaussianFamily
from ensemble_distill.tasks import open_task

CENTER, SCALE = 3.0, 2.0  # the unit in which heads of the tests' regression speak


def begun(name: str, task: str, weights: Floats | None = None, **options: Any) -> tuple[Floats, Floats, list[Batch]]:
    """What the last layer sees of 20 batches (N, F) and says of them (N, W) once it was solved for, and the batches."""
    *_, stage = stages(name, closed_form=True, ridge=1e-9, **options)
    student = stage.start(a_student(name, task))
    if task == "regression":
        student.family = GaussianFamily(CENTER, SCALE)
    batches = [a_batch(task, seed=seed, weights=weights) for seed in range(20)]
    x = torch.randn(20 * B, FEATURES, dtype=torch.float64)
    assert stage.fit is not None
    with torch.no_grad():
        stage.fit(student, zip(student.body(x).split(B), batches, strict=True))
        seen = student.heads.hidden(student.body(x))
        return seen[:, 0].numpy(), student(x)[:, 0].numpy(), batches


def least_squares(seen: Floats, target: Floats) -> Floats:
    design = np.c_[seen, np.ones(len(seen))]
    found: Floats = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    return found


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize(("name", "options"), [("kd", {}), ("kd", {"temperature": 4.0}), ("ban", {})])
def test_for_classes_it_is_the_logarithm_of_the_members_mean(
    name: str, options: dict[str, float], weights: Floats | None
) -> None:
    seen, said, batches = begun(name, "classification", weights, **options)
    t, w = options.get("temperature", 1.0), np.full(M, 1 / M) if weights is None else weights
    logits = np.concatenate([np.asarray(batch.teacher.logits) for batch in batches])  # type: ignore[attr-defined]
    target = t * np.log(np.einsum("nmk,m->nk", softened(logits, t), w))
    wanted = least_squares(seen, target - target.mean(-1, keepdims=True))
    assert_allclose(said, wanted, atol=1e-4)
    assert np.abs(wanted - target).mean() > 0.1  # no perfect fit: it is least squares


def test_each_head_is_solved_for_from_its_own_hidden_layer() -> None:
    (stage,) = stages("hydra", closed_form=True, ridge=1e-9, hinton_share=0)
    student = stage.start(a_student())
    batches = [a_batch(seed=seed) for seed in range(20)]
    x = torch.randn(20 * B, FEATURES, dtype=torch.float64)
    assert stage.fit is not None
    with torch.no_grad():
        for parameter in student.heads.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        stage.fit(student, zip(student.body(x).split(B), batches, strict=True))
        seen, said = student.heads.hidden(student.body(x)), student(x)
    target = np.concatenate([np.asarray(batch.teacher.logits) for batch in batches])  # type: ignore[attr-defined]
    target -= target.mean(-1, keepdims=True)
    for head in range(M):
        assert_allclose(said[:, head], least_squares(seen[:, head].numpy(), target[:, head]), atol=1e-4)


@pytest.mark.parametrize(("name", "t"), [("kd", 1.0), ("kd", 2.5), ("ban", 1.0)])
def test_for_numbers_it_is_the_moments_of_the_members_mixture(name: str, t: float) -> None:
    seen, said, batches = begun(name, "regression", **({"temperature": t} if name == "kd" else {}))
    mean, log_variance = (
        np.concatenate([np.asarray(getattr(batch.teacher, key)) for batch in batches])
        for key in ("mean", "log_variance")
    )
    variance = np.exp(log_variance).mean(1) + mean.var(1) / t  # as the loss of kd says
    target = np.stack([(mean.mean(1) - CENTER) / SCALE, np.log(variance / SCALE**2)], -1)
    assert_allclose(said, least_squares(seen, target), atol=1e-4)


def test_labels_that_are_numbers_are_what_the_mean_begins_at() -> None:
    """Of mixed rows it is what lies between, and rows without a label say nothing."""
    seen, said, batches = begun("supervised", "regression")
    labels = [batch.labels for batch in batches]
    assert all(one is not None for one in labels)
    own, partner, share, known = (
        np.concatenate([np.asarray(getattr(one, key)) for one in labels])
        for key in ("own", "partner", "weight", "known")
    )
    assert 0 < (~known).sum() < len(known)
    target = ((share * own + (1 - share) * partner)[known] - CENTER) / SCALE
    design = np.c_[seen, np.ones(len(seen))]
    solution = np.linalg.lstsq(design[known], target, rcond=None)[0]
    assert_allclose(said[:, 0], design @ solution, atol=1e-4)
    assert_allclose(said[:, 1], 0, atol=1e-6)  # the variance is that of a fresh head


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_its_default_is_the_tasks_and_the_starts(task: str) -> None:
    for name in method_names():
        method = open_method(name)
        if task not in method.tasks or "closed_form" not in method.Options.model_fields:
            continue
        found = {}
        for from_members in (False, True):
            options = method.settled(method.Options(), open_task(task), from_members)
            found[from_members] = options.model_dump()["closed_form"]
            given = method.Options.model_validate({"closed-form": False})
            assert not method.settled(given, open_task(task), from_members).model_dump()["closed_form"]
        expected = {
            "ban": (False, False),  # the paper solves for nothing
            "supervised": (False, task == "regression"),
        }.get(name, (task == "classification", True))
        assert (found[False], found[True]) == expected, name


@pytest.mark.parametrize("name", ["kd", "ban", "supervised"])
def test_the_solution_comes_on_the_way(name: str) -> None:
    first, then = stages(name, closed_form=True)
    assert (first.share, first.fit, then.share) == (0.3, None, 0.7)
    (only,) = stages(name, closed_form=True, solve_after=0)
    assert (only.name, only.share) == (then.name, 1)
    assert only.fit is not None
    (plain,) = stages(name, closed_form=False)
    assert plain.fit is None


def test_what_has_no_such_solution_is_refused() -> None:
    for name, more, words in (
        ("supervised", {}, ("closed-form", "classification")),
        ("ban", {"objective": "cwtm"}, ("closed-form", "'cwtm'", "ban+l")),
    ):
        method = open_method(name)
        with refused(*words):
            method.settled(
                method.Options.model_validate({"closed-form": True, **more}), open_task("classification"), True
            )
