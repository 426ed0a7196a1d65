"""Several processes of which one has other files than the first: nothing is made of both, and what is only seen late is
waited for."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks_helpers import Ended, in_ranks
from tiny import contents, make_folder, save_data, save_member, settings

from ensemble_distill.runtime import shared
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train, train_in
from ensemble_distill.workspace import Workspace

pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]

ROWS = {"train": 40, "validation": 6}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The first process's; another one has a copy of it, `other`, and both write to `out`."""
    folder = make_folder(tmp_path / "first", members=2, rows=ROWS)
    cache_logits(settings(folder, {"output.cache": str(tmp_path / "out/whole")}))
    shutil.copytree(folder, tmp_path / "other")
    return folder


def own(folder: Path) -> Path:
    return folder if os.environ["RANK"] == "0" else folder.parent / "other"


def cache(folder: Path, first: dict[str, Any], other: dict[str, Any]) -> None:
    out = {"output.cache": str(folder.parent / "out/cache")}
    cache_logits(settings(own(folder), out | (first if os.environ["RANK"] == "0" else other)))


def learn(folder: Path, first: dict[str, Any], other: dict[str, Any]) -> None:
    out = {"output.cache": str(folder.parent / "out/whole"), "output.runs": str(folder.parent / "out/runs")}
    train(settings(own(folder), out | (first if os.environ["RANK"] == "0" else other)))


def told_once(ended: list[Ended]) -> str:
    """What one process tells, and the others do not."""
    (told,) = [one.error for one in ended if not one.error.startswith("EndedError")]
    assert told.startswith("EdistillError: Process 1 of 2 (on ")
    return told


# --- what they go by --------------------------------------------------------------------------------------------


def another_pixel(other: Path) -> None:
    x = np.load(other / "data/train.npz")["x"].copy()
    x[21, 3, 3] ^= 1
    save_data(other, "train", 40, x=x)


def another_member(other: Path) -> None:
    save_member(other, 1, seed=9)


def a_member_more(other: Path) -> None:
    save_member(other, 2)


def other_code(other: Path) -> None:
    code = (other / "model.py").read_text()
    (other / "model.py").write_text(code.replace("return x.mean(1)", "return x.mean(1) * 1.1"))


def other_settings(other: Path) -> None:
    text = (other / "edistill.toml").read_text()
    (other / "edistill.toml").write_text(text.replace("count = 2", "count = 2\nseed = 7"))


DIFFERENT: dict[str, tuple[Callable[..., None], Callable[[Path], None], tuple[str, ...]]] = {
    "a pixel": (cache, another_pixel, ("data.train", "(40 rows)", "and the first one")),
    "a member": (cache, another_member, ("sha256 of member member-1",)),
    "a member more": (cache, a_member_more, ("of member member-2", "nothing")),
    "code of members": (cache, other_code, ("the code of teachers.model",)),
    "settings of a pass": (cache, other_settings, ("views.seed 7", "has 0")),
    "code of a body": (learn, other_code, ("the code of",)),
    "settings of a training": (learn, other_settings, ("views.seed 7", "has 0")),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_is_refused_before_anything_is_made(folder: Path, what: str) -> None:
    command, change, said = DIFFERENT[what]
    change(folder.parent / "other")
    before = contents(folder.parent / "out")
    told = told_once(in_ranks(2, command, folder, {}, {}))
    for part in said:
        assert part in told
    assert contents(folder.parent / "out") == before


def test_flags_that_differ_are_refused(folder: Path) -> None:
    told = told_once(in_ranks(2, learn, folder, {"train.epochs": 2}, {"train.epochs": 5}))
    assert "train.epochs 5" in told
    assert "has 2" in told


def test_equal_copies_elsewhere_do(folder: Path) -> None:
    """With as many loader processes as each machine has cores for."""
    ended = in_ranks(2, cache, folder, {}, {"train.workers": 0, "train.peer-timeout": 99.0})
    assert [one.error for one in ended] == ["", ""]
    out = folder.parent / "out"
    assert contents(out / "cache", ["args.toml"]) == contents(out / "whole", ["args.toml"])
    assert [one.error for one in in_ranks(2, learn, folder, {}, {"train.workers": 0})] == ["", ""]


# --- what they see late -----------------------------------------------------------------------------------------

HALF = {"train.epochs": 4, "student.kwargs": {"dropout": 0.0}}


def learn_late(folder: Path, late: float | None) -> int:
    """Another process sees a run's checkpoint, in a folder of runs of its own, after so many seconds; or never."""
    os.fsync = lambda descriptor: None
    shared.LATE, here = 2.0, own(folder)
    if here != folder and late is not None:
        source, target = (place / "runs/hydra-s0/checkpoint.safetensors" for place in (folder, here))
        threading.Timer(late, lambda: shutil.copy(source, target)).start()
    sets = {**HALF, "output.cache": str(folder.parent / "out/whole")}
    return train(settings(here, sets)).resumed_at


@pytest.fixture
def half(folder: Path) -> Path:
    """A training was interrupted; its folder stands in both, in the other without its checkpoint."""
    sets = {**HALF, "output.cache": str(folder.parent / "out/whole")}

    def stop(training: Any) -> None:
        step = training._step

        def once_more(state: Any, rows: Any) -> None:
            if state.step == 12:
                raise KeyboardInterrupt
            step(state, rows)

        training._step = once_more

    with pytest.raises(KeyboardInterrupt):
        train_in(Workspace(settings(folder, sets)), begin=stop)
    run = folder / "runs/hydra-s0"
    shutil.copytree(run, folder.parent / "other/runs/hydra-s0")
    (folder.parent / "other/runs/hydra-s0/checkpoint.safetensors").unlink()
    return folder


def test_a_checkpoint_that_is_seen_late_is_waited_for(half: Path) -> None:
    assert [(one.error, one.result) for one in in_ranks(2, learn_late, half, 0.6)] == [("", 10)] * 2


def test_a_checkpoint_that_one_does_not_see_is_refused(half: Path) -> None:
    before = contents(half / "runs")
    told = told_once(in_ranks(2, learn_late, half, None))
    assert "sees nothing at" in told
    assert "checkpoint.safetensors" in told
    assert contents(half / "runs") == before
