"""`teachers.as = "heads"`: a run of several heads is as many members."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.testing import assert_allclose
from tiny import refused, settings
from trusted import EVERYTHING

from ensemble_distill.cache.reader import Cache
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import TeacherSettings, load_settings
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Context, Teacher
from ensemble_distill.workflows.cache_logits import cache_logits


def members(path: Path, **given: object) -> list[Teacher]:
    return open_teachers(path, Context(TeacherSettings.model_validate(given), trusted=EVERYTHING))


def test_each_head_says_what_it_says_in_the_student(runs: Path) -> None:
    run = Run.open(runs / "runs/hydra-s0")
    x = torch.rand(5, 1, 6, 6)
    with torch.no_grad():
        student = run.student(trust=EVERYTHING)
        predictive = student.predictive(student(x))
    found = members(runs / "runs/hydra-s0", **{"as": "heads"})
    assert [teacher.member.name for teacher in found] == [f"hydra-s0.head-{k}" for k in range(3)]
    assert len({teacher.member.sha256 for teacher in found}) == 3
    for at, teacher in enumerate(found):
        said = teacher.open(Classification).answers("test", range(5), x)
        assert_allclose(torch.from_numpy(said).softmax(1), predictive.means()[:, at], atol=1e-5)
    (pooled,) = members(runs / "runs/hydra-s0")
    assert pooled.member.sha256 == run.digest


def test_weights_and_tables_are_of_heads(runs: Path) -> None:
    table = {"members": {"*.head-1": {"weight": 2.0}}}
    teachers = TeacherSettings.model_validate({"as": "heads", **table})
    found = open_teachers(runs / "runs/hydra-s0", Context(teachers, trusted=EVERYTHING))
    assert teachers.shares([teacher.member.name for teacher in found]) == (1.0, 2.0, 1.0)
    with refused("teachers.weights has 2 values for 3 members"):
        members(runs / "runs/hydra-s0", **{"as": "heads", "weights": [1, 2]})


def test_heads_are_cached_as_members(runs: Path) -> None:
    over = {"teachers.path": str(runs / "runs/hydra-s0"), "teachers.as": "heads", "output.cache": str(runs / "heads")}
    report = cache_logits(settings(runs, over))
    assert report.members == tuple(f"hydra-s0.head-{k}" for k in range(3))
    outputs = Cache(runs / "heads").open("test").read(range(10))
    assert np.ptp(outputs, axis=1).max() > 0
    replayed = load_settings(runs / "heads/args.toml")
    assert replayed.teachers.as_ == "heads"
