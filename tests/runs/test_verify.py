"""`verify` of runs and of chains: every file is read again, and what is wrong is told with its remedy."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs_helpers import OTHER, RUN
from tiny import contents, refused, settings
from typer.testing import CliRunner, Result

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.cli.app import app
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")
CHAIN = Path("runs/ban-s0")


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def made(runs_session: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chain besides."""
    folder = Path(shutil.copytree(runs_session, tmp_path_factory.mktemp("verify") / "tiny"))
    train_chain(settings(folder, {"train.method": "ban", "train.generations": 3, "train.epochs": 1}))
    evaluate(settings(folder), "ban-s0")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which is also where the command runs."""
    copy = Path(shutil.copytree(made, tmp_path / "tiny"))
    monkeypatch.chdir(copy)
    return copy


def test_what_is_whole(folder: Path) -> None:
    before = contents(folder)
    report = verify(folder / CHAIN)
    # train in two views, validation and test, of two generations that taught another
    assert (report.students, report.records, report.problems, report.unfinished) == (3, 8, [], [])
    assert edistill("verify runs/ban-s0").stdout == "runs/ban-s0: 3 students and 8 records, all whole\n"
    assert edistill("verify hydra-s0").stdout == "runs/hydra-s0: 1 student, all whole\n"
    assert edistill(f"verify {CHAIN}/generation-2").stdout == f"{CHAIN}/generation-2: 1 student, all whole\n"
    assert contents(folder) == before


DAMAGED: dict[str, Callable[[], None]] = {
    f"{CHAIN}/generation-2/student.safetensors": lambda: flip(CHAIN / "generation-2/student.safetensors"),
    f"{CHAIN}/generation-3/config.json": lambda: flip(CHAIN / "generation-3/config.json", 40),
    f"{CHAIN}/evaluations/test.json": lambda: flip(CHAIN / "evaluations/test.json", 40),
    f"{CHAIN}/caches/generation-1/records/test": lambda: flip(
        CHAIN / "caches/generation-1/records/test/generation-1.v0.npy"
    ),
    f"{CHAIN}/caches/generation-2/manifest.json": lambda: flip(CHAIN / "caches/generation-2/manifest.json", 90),
    f"{CHAIN}/args.toml": lambda: flip(CHAIN / "args.toml", 200),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_in_a_chain(folder: Path, name: str) -> None:
    DAMAGED[name]()
    problems = verify(CHAIN).problems
    assert [problem for problem in problems if name in problem]
    result = edistill(f"verify {CHAIN}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert name in result.stderr.replace("\n", "")


def test_a_generation_that_learned_from_another(folder: Path) -> None:
    shutil.rmtree(CHAIN / "generation-1")
    shutil.copytree(CHAIN / "generation-3", CHAIN / "generation-1")
    (problem,) = verify(CHAIN).problems
    assert "generation-2 learned from generation-1 with sha256" in problem


def test_a_generation_that_is_missing(folder: Path) -> None:
    shutil.rmtree(CHAIN / "generation-2")
    (problem,) = verify(CHAIN).problems
    assert "generation-3 is finished, and" in problem
    assert "generation-2, which it learned from, is not there" in problem


def test_an_unfinished_generation_is_no_problem(folder: Path) -> None:
    (CHAIN / "generation-3/student.safetensors").unlink()
    report = verify(CHAIN)
    assert (report.students, report.problems, report.unfinished) == (2, [], ["generation-3"])
    assert "2 students and 8 records, all whole; unfinished: generation-3" in edistill(f"verify {CHAIN}").stdout


def test_a_damaged_cache_is_made_again_as_told(folder: Path) -> None:
    """The remedy, followed literally."""
    flip(CHAIN / "caches/generation-2/records/train/generation-2.v0.npy")
    (problem,) = verify(CHAIN).problems
    assert f"Delete {CHAIN}/caches/generation-2: edistill train makes it again" in problem
    weights = (CHAIN / "generation-3/student.safetensors").read_bytes()
    shutil.rmtree(CHAIN / "caches/generation-2")
    shutil.rmtree(CHAIN / "generation-3")
    train_chain(settings(folder, {"train.method": "ban", "train.generations": 3, "train.epochs": 1}))
    assert (CHAIN / "generation-3/student.safetensors").read_bytes() == weights
    assert verify(CHAIN).problems == []


@pytest.mark.parametrize(
    "name", ["student.safetensors", "calibration.json", "export/model.onnx", "evaluations/test.npz"]
)
def test_what_is_damaged_in_a_run(folder: Path, name: str) -> None:
    flip(folder / RUN / name, 60)
    problems = verify(Path(RUN)).problems
    assert [problem for problem in problems if name.replace("npz", "json") in problem or name in problem]
    assert verify(Path(OTHER)).problems == []


def test_what_is_none_of_these(folder: Path) -> None:
    with refused("data holds no cache, no run and no chain"):
        verify(Path("data"))
    with refused("nowhere holds no cache, no run and no chain"):
        verify(Path("nowhere"))
