"""Commands under torchrun: one output, of the first process, and of a failure one message, whosever it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks_helpers import commands
from tiny import contents, make_folder, save_data, settings

from ensemble_distill.workflows.cache_logits import cache_logits

pytestmark = pytest.mark.thorough


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})


def test_the_first_process_alone_speaks(folder: Path) -> None:
    first, second = commands(2, folder, "cache-logits", "--json")
    assert (first.status, second.status) == (0, 0)
    assert json.loads(first.out)["splits"] == {"train": [40, 2], "validation": [6, 1]}
    assert "caching train" in first.err
    assert second.out == second.err == ""


def test_what_all_refuse_is_told_once(folder: Path) -> None:
    said = commands(3, folder, "cache-logits", "--set", "teachers.path=nowhere")
    assert [one.status for one in said] == [2, 2, 2]
    (message,) = (one.err for one in said if one.err)
    assert message.count("Error:") == 1
    assert "nowhere" in message


def test_what_one_process_meets_is_told_by_it(folder: Path) -> None:
    """A row of the second block, which the second of two processes has."""
    x = np.load(folder / "data/train.npz")["x"]
    save_data(folder, "train", 40, x=np.where(np.arange(40)[:, None, None] == 21, np.uint8(255), x))
    source = (folder / "model.py").read_text()
    white = '        if (x.mean((1, 2, 3)) > 0.99).any():\n            raise ValueError("too white")\n'
    (folder / "model.py").write_text(source.replace("        return x.mean(1)", f"{white}        return x.mean(1)"))
    said = commands(2, folder, "cache-logits", "--set", "views.transform=none", before=small)
    assert [one.status for one in said] == [2, 2]
    assert [one.err.count("Error:") for one in said] == [0, 1]
    assert "too white" in said[1].err


def small() -> None:
    from ensemble_distill.cache import writer

    writer.BLOCK_ROWS = 16


def test_other_commands_are_the_first_ones(folder: Path) -> None:
    cache_logits(settings(folder))
    before = contents(folder)
    first, second = commands(2, folder, "inspect", "cache", "--json")
    assert (first.status, second.status) == (0, 0)
    assert json.loads(first.out)
    assert second.out == second.err == ""
    said = commands(2, folder, "verify", "nowhere")
    assert [one.status for one in said] == [2, 2]
    assert [one.err.count("Error:") for one in said] == [1, 0]
    assert contents(folder) == before


def test_processes_that_nobody_brought_together_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "ensemble_distill", "methods"],
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), "RANK": "1", "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert "WORLD_SIZE 2" in found.stderr
    assert "MASTER_ADDR" in found.stderr


def test_torchrun_is_the_engine(folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, "-m", "ensemble_distill", "cache-logits", "--json"], cwd=folder, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["added"] == 2 * (2 + 1)
    cache_logits(settings(folder, {"output.cache": "alone"}))
    assert contents(folder / "cache", ["args.toml"]) == contents(folder / "alone", ["args.toml"])
