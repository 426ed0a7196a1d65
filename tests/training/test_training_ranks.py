"""Several processes of torchrun train one student: that of one process, to rounding, and to the bit their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from ranks_helpers import in_ranks
from tiny import contents, examples, make_folder, settings
from torch.nn import functional

from ensemble_distill import load_student
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.runtime import job, ranks
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.training.together import batch_norm_of_all
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]

LENGTH = {"train.batch-size": 11, "train.epochs": 4}  # of 11 rows no share is half
SURE: dict[str, Any] = {"student.kwargs": {"dropout": 0.0}, "train.opt": "sgd"} | LENGTH
RUNS: dict[str, dict[str, Any]] = {
    "hydra": {"train.model-ema": True, "train.model-ema-decay": 0.7, "method.hinton-share": 0.4, "student.heads": [5]},
    "labels": {"method.label-weight": 0.5, "method.row-weight": 1.5, "train.clip-grad": 0.1},
    "plateau": {"train.method": "kd", "train.sched": "plateau", "train.patience-epochs": 0},
    "supervised": {"train.method": "supervised"},
    "dkpp": {"train.method": "ban", "method.objective": "dkpp"},
    "endd": {"train.method": "endd"},
    "rank-one": {"train.method": "batch-ensemble", "method.spread": 0.3},
    "unsolved": {"train.epochs": 0, "method.hinton-share": 0},
    "compressed": {"student.init": ["member-*"], "student.compress": 0.6, "student.model": "model.py:make_teacher"},
}


def of(name: str, **more: Any) -> dict[str, Any]:
    """The settings of one of `RUNS`."""
    sets = {**SURE, **RUNS[name], "output.name": name, **more}
    if "student.model" in sets:
        del sets["student.kwargs"]
    return sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, some of whose rows have no label; and each run by one process."""
    folder = make_folder(tmp_path_factory.mktemp("ranks") / "tiny", rows={"train": 36, "validation": 12, "transfer": 8})
    cache_logits(settings(folder))
    for name in RUNS:
        train(settings(folder, of(name)))
    return folder


# --- the student of one process -----------------------------------------------------------------------------------


def train_all(folder: Path, runs: str) -> list[float | None]:
    os.fsync = lambda descriptor: None
    return [train(settings(folder, of(name, **{"output.runs": runs}))).still_falling for name in RUNS]


def figures(run: Path) -> list[list[float]]:
    """The summary's numbers, without the seconds."""
    lines = [line.split(",")[:-1] for line in (run / "summary.csv").read_text().splitlines()[1:]]
    return [[float(cell) for cell in line if cell[:1].isdigit() or cell[:1] == "-"] for line in lines]


def said(run: Path) -> NDArray[np.float32]:
    """What its heads say of some pictures. Weights would not do: what normalization takes out again, such as a bias
    before it, has no gradient but rounding, which Adam makes steps of."""
    x = torch.from_numpy(examples(50, 3)[0]).float().div(255).sub(0.5).div(0.5).unsqueeze(1)
    with torch.no_grad():
        return load_student(run, trust=True)(x).numpy()


@pytest.mark.parametrize("world", [2, 3])
def test_the_student_is_that_of_one_process(folder: Path, world: int) -> None:
    ended = in_ranks(world, train_all, folder, f"by-{world}")
    assert [(one.status, one.error) for one in ended] == [(0, "")] * world
    for name in RUNS:
        alone, together = folder / "runs" / name, folder / f"by-{world}" / name
        assert sorted(contents(alone)) == sorted(contents(together))
        assert_allclose(said(together), said(alone), rtol=1e-4, atol=1e-4, err_msg=name)
        if RUNS[name].get("train.epochs") != 0:
            assert_allclose(figures(together), figures(alone), rtol=1e-4, atol=1e-4, err_msg=name)


def test_batch_norm_is_torchs_of_all_rows() -> None:
    for index, one in enumerate(in_ranks(3, normalized)):
        assert one.error == "", one
        rows = slice(*[4 * at for at in (index, index + 1)])
        for found, wanted, of_rows in zip(one.result, normalized(whole=True), PER_ROW, strict=True):
            assert_allclose(found, wanted[rows] if of_rows else wanted, rtol=1e-5, atol=1e-6)


PER_ROW = (True, True, False, False)  # y, dx, running mean and variance


def normalized(whole: bool = False) -> list[NDArray[np.float64]]:
    """y and the gradient by x (12, 5, 3) of what each process has, and the statistics, by torch or by ours."""
    generator = torch.Generator().manual_seed(0)
    x, toward = (torch.randn(12, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.linspace(0.5, 2, 5).double(), torch.linspace(-1, 1, 5).double()
    mean, variance = torch.ones(5).double(), torch.full((5,), 2.0).double()
    if whole:
        x.requires_grad_()
        y = functional.batch_norm(x, mean, variance, weight, bias, True, 0.3, 1e-3)
        (y * toward).sum().backward()
    else:
        with job.opened():
            rows = slice(4 * ranks.current().index, 4 * ranks.current().index + 4)
            x = x[rows].requires_grad_()
            y = batch_norm_of_all(x, mean, variance, weight, bias, True, 0.3, 1e-3)
            (y * toward[rows]).sum().backward()
    assert x.grad is not None
    return [tensor.detach().numpy() for tensor in (y, x.grad, mean, variance)]


# --- its own bits ---------------------------------------------------------------------------------------------------

HARD = {"train.epochs": 3, "train.batch-size": 12, "method.hinton-share": 0.4, "train.model-ema": True}  # with dropout


class KillsAt(Silent):
    """One process kills itself after so many steps."""

    def __init__(self, victim: int, step: int) -> None:
        super().__init__()
        self.victim, self.left, self.unit = victim, step, ""

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.unit = unit

    def advance(self, count: int = 1, facts: object = None) -> None:
        self.left -= self.unit == "steps"
        if self.left == 0 and ranks.current().index == self.victim:
            os.kill(os.getpid(), signal.SIGKILL)


def train_one(folder: Path, sets: dict[str, Any], victim: int = 0, step: int = 0) -> int:
    os.fsync = lambda descriptor: None
    return train(settings(folder, sets), progress=KillsAt(victim, step)).resumed_at


def test_a_training_whose_first_process_was_killed_goes_on_to_its_own_bits(folder: Path) -> None:
    """With dropout, whose masks are each process's own."""
    hard = {**HARD, "output.runs": "kills"}
    assert [one.error for one in in_ranks(2, train_one, folder, {**hard, "output.name": "whole"})] == ["", ""]
    ended = in_ranks(2, train_one, folder, {**hard, "output.name": "killed"}, 0, 5)
    assert ended[0].status == -signal.SIGKILL
    assert "LostError" in ended[1].error, ended
    again = in_ranks(2, train_one, folder, {**hard, "output.name": "killed"})
    assert [(one.result, one.error) for one in again] == [(3, ""), (3, "")]
    whole, killed = (contents(folder / "kills" / name) for name in ("whole", "killed"))
    assert whole["student.safetensors"] == killed["student.safetensors"]


def test_a_training_of_which_a_process_was_killed_goes_on_with_another_number(folder: Path) -> None:
    sets = of("hydra", **{"output.runs": "others"})
    ended = in_ranks(2, train_one, folder, sets, 1, 7)
    assert ended[1].status == -signal.SIGKILL
    assert "LostError" in ended[0].error, ended
    others = in_ranks(3, train_one, folder, sets)
    assert [(one.result, one.error) for one in others] == [(4, "")] * 3
    assert_allclose(said(folder / "others/hydra"), said(folder / "runs/hydra"), rtol=1e-4, atol=1e-4)


def test_a_process_that_gives_no_sign_ends_the_job(folder: Path) -> None:
    """Stopped, not dead: its connections stay open, and nothing but its silence tells."""
    ended = in_ranks(2, train_stopped, folder)
    assert ended[0].status == job.STATUS


def train_stopped(folder: Path) -> None:
    os.fsync = lambda descriptor: None
    if os.environ["RANK"] == "1":  # for as long as it takes the other one to end
        pid, parent = os.getpid(), os.getppid()
        if os.fork() == 0:
            import time

            time.sleep(6)
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        assert parent
    train(settings(folder, {"output.name": "stopped", "train.peer-timeout": 1.5}), progress=StopsAt(4))


class StopsAt(KillsAt):
    def __init__(self, step: int) -> None:
        super().__init__(1, step)

    def advance(self, count: int = 1, facts: object = None) -> None:
        self.left -= self.unit == "steps"
        if self.left == 0 and ranks.current().index == self.victim:
            os.kill(os.getpid(), signal.SIGSTOP)


# --- chains ---------------------------------------------------------------------------------------------------------

CHAIN = {"train.method": "ban", "train.generations": 2, "train.epochs": 2}


def chained(folder: Path, runs: str) -> tuple[bool, int]:
    os.fsync = lambda descriptor: None
    report = train_chain(settings(folder, {**SURE, **CHAIN, "output.runs": runs, "output.name": "chain"}))
    return report.fresh, len(report.generations)


def test_the_generations_of_a_chain_are_those_of_one_process(folder: Path) -> None:
    ended = in_ranks(2, chained, folder, "chains")
    assert [(one.result, one.error) for one in ended] == [((True, 2), "")] * 2
    train_chain(settings(folder, {**SURE, **CHAIN, "output.name": "chain"}))
    for number in (1, 2):
        one, other = (folder / runs / "chain" / f"generation-{number}" for runs in ("runs", "chains"))
        assert sorted(contents(other)) == sorted(contents(one))
        assert_allclose(said(other), said(one), rtol=1e-4, atol=1e-4)
    assert [one.result for one in in_ranks(2, chained, folder, "chains")] == [(False, 2)] * 2


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_compiled_body_whose_batch_norm_is_of_all_rows_is_refused(folder: Path) -> None:
    ended = in_ranks(2, train_one, folder, {"train.torchcompile": "eager", "output.name": "compiled-body"})
    (told,) = (one.error for one in ended if one.error and "EndedError" not in one.error)
    assert "train.torchcompile" in told
    assert "2 processes" in told


def test_more_processes_than_rows_of_a_step_are_refused(folder: Path) -> None:
    ended = in_ranks(3, train_one, folder, {"train.batch-size": 2, "output.name": "few"})
    (told,) = (one.error for one in ended if one.error and "EndedError" not in one.error)
    assert "3 processes" in told
    assert "train.batch-size" in told
