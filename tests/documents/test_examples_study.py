"""The born-again study plans what it compares, and its intervals are Student's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

EXAMPLE = Path(__file__).parents[2] / "examples" / "born_again"
each_study = pytest.mark.parametrize("name", ["brief", "converged", "few-views"])


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = ("arms", "claims", "pairs")
    found = {name: importlib.import_module(name) for name in names}
    for name in names:  # other examples have files of these names
        monkeypatch.delitem(sys.modules, name)
    return found


@each_study
def test_a_run_stands_behind_those_that_it_learns_from(modules: dict[str, Any], name: str) -> None:
    study = modules["arms"].STUDIES[name]
    for group in study.names():
        before: list[str] = []
        for run in study.planned(group, 3):
            assert set(run.needs) <= set(before)
            before.append(run.name)
    runs = [run for group in study.names() for run in study.planned(group, 3)]
    assert {teacher for run in runs for teacher in run.lent} <= {run.name for run in runs}


@each_study
def test_runs_and_seeds_have_names_of_their_own(modules: dict[str, Any], name: str) -> None:
    study = modules["arms"].STUDIES[name]
    names = [run.name for group in study.names() for seed in range(5) for run in study.planned(group, seed)]
    assert len(names) == len(set(names))


@each_study
def test_what_is_compared_is_planned(modules: dict[str, Any], name: str) -> None:
    study = modules["arms"].STUDIES[name]
    planned = {(group, arm) for group in study.names() for run in study.planned(group, 0) for arm in run.arms}
    claims = modules["claims"].claims_of(study)
    compared = {arm for of in claims.values() for claim in of for arm in (claim.first, claim.second)}
    assert compared
    assert compared <= planned


def test_differences_pair_by_seed_and_intervals_are_students(modules: dict[str, Any]) -> None:
    pairs = modules["pairs"]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    lines = [{"arm": "x", "seed": str(seed), "nll": str(value)} for seed, value in enumerate(a)]
    lines += [{"arm": "y", "seed": str(seed), "nll": str(value)} for seed, value in reversed(list(enumerate(b)))]
    claim = modules["claims"].Claim(("g", "x"), ("g", "y"))
    found = pairs.paired(claim, {"g": lines}, "nll")
    assert found == pytest.approx(a - b)
    assert pairs.paired(claim, {"g": lines[1:]}, "nll") == pytest.approx((a - b)[1:])
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert pairs.interval(found) == pytest.approx(expected)
