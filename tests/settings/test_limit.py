"""`limit`: what a trial makes stands apart from the real thing, in folders that end in -limit-N."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import contents, refused_and_kept, settings

from ensemble_distill.runs.folder import export_again, is_ensemble_export
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.compare import compare
from ensemble_distill.workflows.evaluate import evaluate, evaluate_together
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.inspect import inspect

GENERATION = "runs-limit-9/ban-s0/generation-2"


def written(file: Path, cache: str, runs: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'limit = 9\n[data]\ntrain = "x.npz"\n[output]\ncache = "{cache}"\nruns = "{runs}"\n')
    return file


def found(file: Path, root: Path, overrides: dict[str, Any] | None = None) -> tuple[str, str]:
    output = load_settings(file, overrides).output
    cache, runs = (str(Path(path).relative_to(root)) for path in (output.cache, output.runs))
    return cache, runs


@pytest.mark.parametrize(
    ("file", "cache", "runs"),
    [
        (f"{GENERATION}/args.toml", "../caches/generation-1", ".."),
        (f"{GENERATION}/export/edistill.toml", "../../caches/generation-1", "../.."),
        ("runs-limit-9/ban-s0/caches/generation-1/args.toml", ".", "../.."),
    ],
)
def test_the_files_of_a_trial_name_its_own_folders(tmp_path: Path, file: str, cache: str, runs: str) -> None:
    own = ("runs-limit-9/ban-s0/caches/generation-1", "runs-limit-9/ban-s0")
    assert found(written(tmp_path / file, cache, runs), tmp_path) == own


def test_elsewhere_each_path_is_marked(tmp_path: Path) -> None:
    """Whatever the folder above is called, and in a trial's file where a flag names another folder."""
    work = tmp_path / "work-limit-9"
    assert found(written(work / "edistill.toml", "cache", "runs"), work) == ("cache-limit-9", "runs-limit-9")
    file = written(tmp_path / GENERATION / "args.toml", "../caches/generation-1", "..")
    own = "runs-limit-9/ban-s0/caches/generation-1"
    assert found(file, tmp_path, {"output.runs": str(tmp_path / "runs")}) == (own, "runs-limit-9")


def test_an_ensemble_of_a_trial_does_not_replace_the_real_one(runs: Path) -> None:
    (real,) = export(settings(runs), ensemble=True, onnx=True).files
    before = contents(runs)
    (trial,) = export(settings(runs, {"limit": 5}), ensemble=True, onnx=True).files
    assert trial == runs / "ensemble-limit-5/export/model.onnx"
    after = contents(runs)
    assert {name: after[name] for name in before} == before
    assert inspect(trial.parent.parent) == inspect(trial)
    assert is_ensemble_export(trial)
    assert export_again(real) == "edistill export --ensemble --onnx"
    assert export_again(trial) == "edistill export --ensemble --onnx --limit 5"


def test_a_trial_is_kept_in_no_run_that_is_none(runs: Path) -> None:
    """Named by its path, a run is found whatever the folder of runs is."""
    few, run = settings(runs, {"limit": 5}), str(runs / "runs/hydra-s0")
    for command in (
        lambda: evaluate(few, run),
        lambda: evaluate_together(few, [run, str(runs / "runs/other")]),
        lambda: compare(few, [run, str(runs / "runs/other")]),
        lambda: calibrate(few, run),
        lambda: export(few, run, onnx=True),
    ):
        with refused_and_kept(runs, "runs/hydra-s0 was made without limit, and limit is 5", "Leave limit out"):
            command()
