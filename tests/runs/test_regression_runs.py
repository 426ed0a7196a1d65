"""Runs of numbers: an interrupted one goes on to the same bytes, and a finished one teaches the next."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from numpy.testing import assert_allclose
from tiny import StopsAt, contents, killed_at, refused, settings, with_cache
from tiny_regression import LEVEL, SPREAD, ensemble, load_data, make_folder

from ensemble_distill.cache.reader import Cache
from ensemble_distill.facts import Member
from ensemble_distill.runs.run import load_student
from ensemble_distill.runtime.records import parsed
from ensemble_distill.training import loop
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

EACH_STEP = 1e-9  # minutes between checkpoints
# the tiny body has dropout and BatchNorm; the second stage begins in the middle of an epoch
HARD = {"train.model-ema": True, "train.model-ema-decay": 0.7, "method.hinton-share": 0.4, "train.batch-size": 12}


pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_cache(make_folder(tmp_path_factory.mktemp("runs") / "tiny", rows={"train": 40, "validation": 12}))


def results(run: Path) -> tuple[dict[str, bytes], list[str]]:
    """What must be the same: weights, config, and the table but for its last column, the seconds."""
    kept = {name: made for name, made in contents(run).items() if name in ("student.safetensors", "config.json")}
    return kept, [line.rpartition(",")[0] for line in (run / "summary.csv").read_text().splitlines()]


# --- interrupted ------------------------------------------------------------------------------------------------


def test_a_pass_killed_at_any_write_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_folder(tmp_path / "whole", rows={"validation": 10}, members=2)
    cache_logits(settings(whole))
    wanted = contents(whole / "cache")
    resumed = 0
    for point in itertools.count():
        shutil.rmtree(whole / "cache")
        with killed_at(point, monkeypatch, whole) as happened:
            cache_logits(settings(whole))
        if not happened:
            break
        cache_logits(settings(whole))
        assert contents(whole / "cache") == wanted, f"after a crash at point {point}"
        resumed += 1
    assert resumed > 20


def test_a_training_killed_at_any_write_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    hard = {**HARD, "train.epochs": 1, "output.name": "killed", "train.checkpoint-minutes": EACH_STEP}
    train(settings(folder, {**hard, "output.name": "whole"}))
    wanted, run = results(folder / "runs/whole"), folder / "runs/killed"
    found: list[dict[str, bytes]] = []
    resumed: set[int] = set()
    for point in itertools.count():
        shutil.rmtree(run, ignore_errors=True)
        ticks = itertools.count()
        with killed_at(point, monkeypatch, run) as happened:
            train(settings(folder, hard))
        if not happened:
            break
        if contents(run) in found:
            continue  # what goes on knows nothing but what is on disk
        found.append(contents(run))
        resumed.add(train(settings(folder, hard)).resumed_at)
        assert results(run) == wanted, f"after a crash at point {point}"
    assert resumed == set(range(4))


@pytest.mark.parametrize("method", ["hydra", "kd", "supervised", "batch-ensemble"])
def test_every_method_goes_on(folder: Path, method: str) -> None:
    mine = {"train.method": method, "output.name": f"{method}-whole"}
    train(settings(folder, mine))
    mine |= {"output.name": f"{method}-stopped", "train.checkpoint-minutes": EACH_STEP}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(settings(folder, mine), progress=StopsAt(5))
    assert train(settings(folder, mine)).resumed_at == 8
    assert results(folder / f"runs/{method}-stopped") == results(folder / f"runs/{method}-whole")


def test_a_training_does_not_go_on_in_another_unit(folder: Path) -> None:
    mine = {"output.name": "elsewhere", "train.checkpoint-minutes": EACH_STEP}
    with pytest.raises(KeyboardInterrupt):
        train(settings(folder, mine), progress=StopsAt(3))
    before = contents(folder)
    with refused("standardized None", "now it is (454.0, 17.0)"):
        train(settings(folder, {**mine, "teachers.standardized": {"mean": LEVEL, "std": SPREAD}}))
    assert contents(folder) == before


# --- as a teacher -----------------------------------------------------------------------------------------------


def test_a_run_teaches_the_moments_of_its_mixture(folder: Path, tmp_path: Path) -> None:
    """Beside a member that is standardized, though the run is not."""
    runs = {}
    for seed, method in enumerate(("hydra", "kd")):
        mine = {"output.name": f"{method}-teacher", "train.method": method, "train.seed": seed}
        runs[method] = train(settings(folder, mine)).folder
    units = (LEVEL, SPREAD)
    students = make_folder(tmp_path / "students", rows={"train": 16, "validation": 20}, members=1, units=units)
    for method, run in runs.items():
        shutil.copytree(run, students / "teachers" / method)
    said = {"teachers.standardized": {"mean": LEVEL, "std": SPREAD}}
    cache_logits(settings(students, said))
    cache = Cache(students / "cache")
    assert cache.manifest.names == ("hydra", "kd", "member-0")
    assert [m.units for m in cache.manifest.members] == [None, None, units]
    assert {m.output for m in cache.manifest.members} == {"mean-logvar"}
    x, _ = load_data(students, "validation")
    found = cache.open("validation").read(range(20)).astype(np.float64)
    for at, method in enumerate(("hydra", "kd")):
        student = load_student(runs[method], trust=True)
        with torch.no_grad():
            raw = student(torch.from_numpy(x)).double().numpy()
        center, scale = student.family.center, student.family.scale
        means, variances = center + scale * raw[..., 0], scale**2 * np.exp(raw[..., 1])
        assert means.shape == (20, 3 if method == "hydra" else 1)
        assert_allclose(found[:, at, 0], means.mean(1), rtol=3e-7)
        assert_allclose(np.exp(found[:, at, 1]), variances.mean(1) + means.var(1), rtol=2e-5)
    (member,), (variance,) = (values.T for values in ensemble(x, members=1))
    assert_allclose(found[:, 2, 0], member, rtol=3e-7)
    assert_allclose(np.exp(found[:, 2, 1]), variance, rtol=2e-5)
    assert train(settings(students, said)).heads == 3


def test_a_task_is_not_taught_by_another(folder: Path, tmp_path: Path) -> None:
    classes = tiny.make_folder(tmp_path / "classes", rows={"train": 12}, members=2)
    cache_logits(settings(classes))
    run = train(settings(classes, {"train.epochs": 2})).folder
    numbers = make_folder(tmp_path / "numbers", rows={"train": 9})
    run.rename(numbers / "teachers/hydra")
    with refused("hydra is a run for classification, and the task is regression", "teachers.path", "classification"):
        cache_logits(settings(numbers))
    shutil.copytree(train(settings(folder, {"output.name": "teacher"})).folder, classes / "teachers/hydra")
    with refused("hydra is a run for regression, and the task is classification", 'task = "regression"'):
        cache_logits(settings(classes))


def test_a_record_of_a_member_that_knows_no_units_is_a_classifiers() -> None:
    """Manifests and exports of the first classifiers lack both fields."""
    record = Member("m", "0" * 64).to_json()
    first = {name: value for name, value in record.items() if name not in ("units", "variance")}
    assert parsed(Member, first) == parsed(Member, record)
    number = Member("m", "0" * 64, "mean", units=(1.5, 2.0), variance=0.1)
    assert parsed(Member, number.to_json()) == number
