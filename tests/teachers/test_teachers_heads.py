"""`teachers.as = "heads"`: a run of several heads is as many members."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train


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


@pytest.mark.parametrize("run", ["hydra-s0", "own-bodies", "be"])
def test_the_body_is_counted_once_and_a_head_with_it(runs: Path, run: str) -> None:
    """However many heads are members: who serves them runs the body once."""
    more: dict[str, dict[str, object]] = {
        "own-bodies": {
            "student.model": "model.py:make_teacher",
            "student.init": ["*"],
        },  # a head reads its own body alone
        "be": {"train.method": "batch-ensemble"},
    }
    if run in more:
        train(settings(runs, {"output.name": run, **more[run]}))
    of = Run.open(runs / "runs" / run)
    whole = evaluate(settings(runs), run).cost["student"]
    over = {
        "teachers.path": str(runs / "runs" / run),
        "teachers.as": "heads",
        "output.cache": str(runs / f"cache-{run}"),
        "output.name": f"of-{run}",
    }
    cache_logits(settings(runs, over))
    train(settings(runs, {**over, "train.epochs": 1}))
    cost = evaluate(settings(runs, over), f"of-{run}").cost
    ensemble, member, two = cost["ensemble"], cost["member"], cost["best-2"]
    assert whole is not None
    assert ensemble is not None
    assert member is not None
    assert (ensemble["parameters"], ensemble["macs"]) == (whole["parameters"], whole["macs"])
    student = of.student(trust=EVERYTHING)
    sizes = {name: tensor.numel() for name, tensor in student.named_parameters()}
    factored = {name.removesuffix(".s") for name in sizes if name.endswith(".s")}
    own = {
        "hydra-s0": [name for name in sizes if name.startswith("heads.")],
        "own-bodies": list(sizes),
        "be": [f"{name}.{part}" for name in factored for part in ("s", "r", "bias")],
    }
    total, of_heads = sum(sizes.values()), sum(sizes[name] for name in own[run])
    assert of_heads % 3 == 0
    assert member["parameters"] == total - of_heads + of_heads // 3
    if two is not None:
        assert two["parameters"] == total - of_heads // 3
