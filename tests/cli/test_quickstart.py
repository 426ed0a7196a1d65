"""`quickstart`: the folder it makes is a working one, and the whole of it runs."""

from __future__ import annotations

import filecmp
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows.quickstart import COMMANDS, prepare

README = Path(__file__).parents[2] / "README.md"
MADE = {
    *("edistill.toml", "model.py", "data/train.npz", "data/validation.npz", "data/test.npz", "data/calibration.npz"),
    *("data/quarter-turned.npz", *(f"teachers/member-{index:02d}.safetensors" for index in range(8))),
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what it makes ----------------------------------------------------------------------------------------------


def test_the_folder_holds_what_an_ensemble_needs(digits_session: Path) -> None:
    made = {name for name in files(digits_session) if name.split("/")[0] not in ("cache", "runs", "__pycache__")}
    assert made == MADE
    settings = load_settings(digits_session)
    assert list(settings.splits()) == ["train", "validation", "test", "calibration", "ood/quarter-turned"]
    assert settings.student.model == f"{digits_session / 'model.py'}:make_body"


def test_the_splits_are_disjoint_rows_of_the_digits(digits_session: Path) -> None:
    digits = load_digits()
    known = {
        image.tobytes(): label
        for image, label in zip(np.round(digits.images * 255 / 16).astype(np.uint8), digits.target, strict=True)
    }
    seen: set[bytes] = set()
    for name in ("train", "validation", "calibration", "test"):
        with np.load(digits_session / f"data/{name}.npz") as split:
            pictures = [picture.tobytes() for picture in split["x"]]
            assert [known[picture] for picture in pictures] == split["y"].tolist()
        assert seen.isdisjoint(pictures)
        seen |= set(pictures)
    assert seen == set(known)
    with np.load(digits_session / "data/test.npz") as test, np.load(digits_session / "data/quarter-turned.npz") as away:
        assert np.array_equal(np.rot90(test["x"][7]), away["x"][7])


@torch.no_grad()
def test_the_members_are_good_and_differ(digits_session: Path) -> None:
    make = load_factory(f"{digits_session / 'model.py'}:make_teacher", "teachers.model")
    with np.load(digits_session / "data/test.npz") as test:
        x, y = torch.from_numpy((test["x"][:, None] / 255 - 0.5) / 0.5).float(), test["y"]
    said = []
    for path in sorted((digits_session / "teachers").iterdir()):
        module = make()
        module.load_state_dict(load_file(path))
        said.append(softmax(module(x).double().numpy(), axis=1))
    probs = np.stack(said)
    wrong = probs.argmax(2) != y
    assert wrong.mean(axis=1).max() < 0.08
    assert len({tuple(np.flatnonzero(rows)) for rows in wrong}) == 8
    nll = -np.log(probs[:, np.arange(len(y)), y]).mean(), -np.log(probs.mean(0)[np.arange(len(y)), y]).mean()
    assert nll[1] < 0.85 * nll[0], "or a student of them has nothing to be worth"


def test_it_is_the_same_everywhere(digits_session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.quickstart.digits.MEMBERS", 1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    prepare(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are its own"
    assert torch.get_num_threads() == threads
    made = {name for name in MADE if not name.startswith("teachers/member-0") or name.endswith("00.safetensors")}
    assert files(tmp_path / "again") == made
    _, different, missing = filecmp.cmpfiles(
        digits_session, tmp_path / "again", made - {"teachers/member-00.safetensors"}, shallow=False
    )
    assert (different, missing) == ([], [])
    first, second = (
        load_file(folder / "teachers/member-00.safetensors") for folder in (digits_session, tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- refusals ---------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(EdistillError, match=f"{name} exists and is not empty. Give quickstart a new folder"):
            prepare(tmp_path / name)
    assert files(tmp_path) == {"mine/thesis.txt", "file"}


# --- the command ------------------------------------------------------------------------------------------------


def test_prepare_only_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_distill.quickstart.digits.MEMBERS", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    result = CliRunner().invoke(app, ["quickstart", "new", "--prepare-only"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Making new/: edistill.toml, model.py, data, and an ensemble" in result.stderr
    assert "training the members: 1 members" in result.stderr
    assert "model.py" in files(tmp_path / "new")
    assert not (tmp_path / "new" / "cache").exists()


def test_it_runs_the_four_commands_and_stops_at_the_first_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_distill.workflows.quickstart.prepare", lambda folder, progress: folder.mkdir())
    ran: list[str] = []

    def run(command: list[str], *, cwd: Path, check: bool) -> Any:
        assert command[:3] == [sys.executable, "-m", "ensemble_distill"]
        assert (cwd, check) == (Path("new"), False)
        ran.append(" ".join(command[3:]))
        return subprocess.CompletedProcess(command, 2 if ran[-1] == stop else 0)

    monkeypatch.setattr(subprocess, "run", run)
    for stop, status in (("evaluate", 2), ("", 0)):
        monkeypatch.chdir(tmp_path)
        ran.clear()
        result = CliRunner().invoke(app, ["quickstart", "new"])
        assert result.exit_code == status
        shown = re.findall(r"(?m)^\$ edistill (.+)$", result.stdout)
        assert shown == ran == list(COMMANDS[: 3 if stop else 4])
        (tmp_path / "new").rmdir()


@pytest.mark.slow
def test_a_stranger_gets_from_nothing_to_an_export(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_distill", "quickstart", "digits"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "digits/runs/hydra-s0"
    for name in ("student.safetensors", "evaluations/test.json", "export/model.onnx", "export/model.safetensors"):
        assert (run / name).is_file()
        assert str(Path("digits/runs/hydra-s0") / name) in done.stdout
