"""Loader processes that fail, die, are interrupted or take long: one message, and the command goes on without them."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import INTERRUPTED, message_of
from tiny import make_folder, refused, wait_until
from torch.utils.data import Dataset, _utils
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.loading import batches

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
THREE = [[0, 1], [2, 3], [4, 5]]


class Rows(Dataset[int]):
    """Six rows, of which the last two are read by `last`."""

    def __init__(self, last: Callable[[], Any] = lambda: None) -> None:
        self.last = last

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> int:
        if row >= 4:
            self.last()
        return row


class NeedsTwoError(Exception):
    """What pickle cannot make again: it passes the text alone."""

    def __init__(self, text: str, other: int) -> None:
        super().__init__(f"{text} {other}")


def raises(error: BaseException) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


def loaded(rows: Dataset[int], workers: int) -> Iterator[list[int]]:
    return batches(rows, THREE, list, workers, CPU)


# --- errors -----------------------------------------------------------------------------------------------------


def test_batches_come_in_order() -> None:
    for workers in [0, 1, 2]:
        assert list(loaded(Rows(), workers)) == THREE


def test_what_a_row_raises_stays_what_it_is() -> None:
    for error, text in [
        (EdistillError("row 4 does not decode. Replace it."), "row 4 does not decode. Replace it."),
        (ValueError("of the user's own"), "of the user's own"),
        (KeyError("a"), "'a'"),
        (MemoryError("8 GiB"), "8 GiB"),
        (OSError(2, "No such file", "x.png"), "[Errno 2] No such file: 'x.png'"),
        (SystemExit(3), "3"),
    ]:
        for workers in (0, 1):
            stream = loaded(Rows(raises(error)), workers)
            assert [next(stream), next(stream)] == THREE[:2]
            with pytest.raises(type(error)) as caught:
                next(stream)
            assert (type(caught.value), str(caught.value)) == (type(error), text)
        assert "in read" in caught.value.__notes__[0], "where it was raised, for a bug report"


def test_the_text_of_an_error_that_no_process_can_pass_on_survives() -> None:
    with pytest.raises(RuntimeError) as caught:
        list(loaded(Rows(raises(NeedsTwoError("rows are", 5))), 1))
    assert str(caught.value) == "NeedsTwoError: rows are 5"


def test_what_collating_raises_too() -> None:
    def collate(rows: list[int]) -> list[int]:
        return [1 // (row - 2) for row in rows]

    with pytest.raises(ZeroDivisionError):
        list(batches(Rows(), THREE, collate, 1, CPU))


# --- deaths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("die", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL: most likely the memory ran out"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was killed by SIGTERM. Run"),
        (lambda: os._exit(3), "ended by itself with status 3"),
        (lambda: os._exit(0), "ended by itself with status 0"),
    ],
)
def test_a_death_is_one_message(die: Callable[[], None], said: str) -> None:
    with refused(f"A loader process {said}", "--workers"):
        list(loaded(Rows(die), 2))
    assert list(loaded(Rows(), 1)) == THREE, "and the next loader works"


def test_a_death_is_not_taken_for_an_error_of_what_runs_meanwhile() -> None:
    before = multiprocessing.active_children()
    stream = loaded(Rows(), 1)
    assert next(stream) == THREE[0]
    (worker,) = set(multiprocessing.active_children()).difference(before)
    os.kill(worker.pid or 0, signal.SIGKILL)
    time.sleep(0.2)  # in the middle of a step: nothing is raised here
    with refused("was killed by SIGKILL"):
        list(stream)


def test_a_process_that_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.05)
    assert list(loaded(Rows(lambda: time.sleep(0.4)), 1)) == THREE


VIEW = """
import multiprocessing, os, signal
from ensemble_distill.data.views import open_view
class Mine:
    kinds = frozenset({"pixels"})
    def plan(self, seed, view, row, total):
        if row == 30 and multiprocessing.parent_process() is not None:
            LAST
        return open_view("none").plan(seed, view, row, total)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_folder(tmp_path / "tiny")
    monkeypatch.chdir(folder)
    return folder


def with_last(folder: Path, last: str) -> None:
    (folder / "mine.py").write_text(VIEW.replace("LAST", last))
    for name in [name for name in sys.modules if name.startswith("_edistill_mine")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "A loader process was killed by SIGKILL: most likely the memory ran"),
        ("raise ValueError('sorry about that')", "sorry about that"),
    ],
)
def test_a_command_goes_on_without_the_processes_that_failed(folder: Path, last: str, said: str) -> None:
    with_last(folder, last)
    line = ["cache-logits", "--set", "views.transform=mine.py:Mine"]
    result = CliRunner().invoke(app, [*line, "--workers", "2"])
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    assert said in message_of(result.stderr[result.stderr.index("Error: ") :])
    assert "Traceback" not in result.stderr
    result = CliRunner().invoke(app, [*line, "--workers", "0"])
    assert result.exit_code == 0, result.stderr


# --- interrupts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_ctrl_c_in_a_terminal_is_one_line_whatever_the_loader_processes_do(folder: Path, times: int) -> None:
    """A terminal sends it to every process in it."""
    with_last(folder, "import pathlib, time; pathlib.Path('there').touch(); time.sleep(2)")
    process = subprocess.Popen(
        [sys.executable, "-m", "ensemble_distill", "cache-logits", "-j", "2", "--set", "views.transform=mine.py:Mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_until((folder / "there").exists, process)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    said = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 130
    # what was told until then, the last of it on a machine of one core
    before = r"caching \S+: \d+ rows|\d+ members, .* to write|.*This DataLoader will create"
    (told,) = [line for line in said.splitlines() if not re.match(before, line)]
    assert told.startswith(f"{INTERRUPTED[:-1]}: edistill cache-logits -j 2")
