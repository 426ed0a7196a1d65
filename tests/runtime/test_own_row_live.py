"""Members that are asked live, and students: what they say of a row follows from that row alone, or it is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking_helpers import tried
from numpy.testing import assert_array_equal
from own_row_helpers import BATCH, MIXINGS, NORM, RANDOM, folder_of, good, now, source
from tiny import refused, refused_and_kept, settings, unseal
from torch import Tensor, nn

from ensemble_distill.facts import Member
from ensemble_distill.runtime.own_row import Scale, find_change
from ensemble_distill.students.own_row import refuse_dependent_body
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.export import export
from ensemble_distill.workflows.train import train

RUN = {"views.transform": "crop-flip", "train.epochs": 1}


# --- members that are asked live --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("rows") / "tiny", good())
    cache_logits(settings(folder, RUN))
    train(settings(folder, RUN))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.mark.parametrize("name", ["dropout", "batch statistics"])
@pytest.mark.parametrize(
    "command",
    [
        lambda these: evaluate(these, shifts=True),
        lambda these: evaluate(these.model_copy(update={"output": no_cache(these)})),
        lambda these: calibrate(these.model_copy(update={"output": no_cache(these)})),
    ],
    ids=["shifts", "evaluate", "calibrate"],
)
def test_members_that_are_asked_live(folder: Path, name: str, command: Callable[[Any], Any]) -> None:
    these = now(folder, source(name))
    del these["student.model"]
    with refused_and_kept(folder / "runs", "Member member-0", "not a function of its row", MIXINGS[name][2]):
        command(settings(folder, {**RUN, **these}))
    command(settings(folder, RUN))


def no_cache(these: Any) -> Any:
    return these.output.model_copy(update={"cache": Path(these.output.cache).with_name("nowhere")})


# --- students ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["[]", "last stage"])
@pytest.mark.parametrize("name", ["dropout", "batch statistics", "the row before"])
def test_such_a_body_is_not_trained(folder: Path, name: str, heads: str) -> None:
    body = now(folder, source(name))["student.model"]
    more = {"student.heads": {"last-stage": "1"}} if heads != "[]" else {}
    these = {**RUN, "student.model": body, "output.name": "other", **more}
    with refused_and_kept(folder, f"The body {body} gives", "in eval mode", MIXINGS[name][2]):
        train(settings(folder, these))
    told = "training=self.training" if name == "dropout" else "track_running_stats=False. Leave that at True"
    mended = good("pass", f"F.dropout(x, {told})") if name == "dropout" else good(NORM.format("", True), "self.norm(x)")
    train(settings(folder, {**these, "student.model": now(folder, mended)["student.model"]}))


COMMANDS: dict[str, Callable[[Any], Any]] = {
    "evaluate": evaluate,
    "calibrate": calibrate,
    "export": lambda these: export(these, onnx=True),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dropout", "the batch's mean"])
@pytest.mark.parametrize("command", COMMANDS)
def test_such_a_run_is_not_relied_on(folder: Path, name: str, command: str) -> None:
    """It was trained by a version that recorded no answer to compare with, or before bodies were tried."""
    unseal(folder / "runs/hydra-s0")
    of = becomes(folder, source(name))
    with refused("The student of", str(folder / "runs/hydra-s0"), "in eval mode", MIXINGS[name][2]):
        COMMANDS[command](of)
    COMMANDS[command](becomes(folder, good()))


def becomes(folder: Path, text: str) -> Any:
    """Settings beside which the run's body is made by another text, in a process that has imported none of it."""
    (folder / "model.py").write_text(text)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    for name in [name for name in sys.modules if name.startswith("_edistill_model_")]:
        del sys.modules[name]
    return settings(folder, RUN)


def test_such_a_run_teaches_nobody(folder: Path) -> None:
    becomes(folder, source("dropout"))
    teaching = {**RUN, "teachers.path": "runs", "output.cache": "second", "output.runs": "later"}
    with refused("Member hydra-s0", "not a function of its row", RANDOM):
        cache_logits(settings(folder, teaching))
    becomes(folder, good())
    assert cache_logits(settings(folder, teaching)).added == 4


def test_a_body_that_fails_alone_is_told_so() -> None:
    class Centered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ValueError("Expected more than 1 value per channel when training")
            return x

    with refused("asked about the row alone, it fails (ValueError: Expected more than 1 value", BATCH):
        refuse_dependent_body(Centered(), torch.randn(4, 3), "model.py:make_body")
    with refused("Member m", "asked about the row alone, it fails (Member m fails on train", BATCH):
        tried(Centered(), torch.randn(4, 3), Member("m", "s"), "train", range(4), 3)


def test_what_is_not_finite_is_for_others_to_tell() -> None:
    nowhere = find_change(lambda x: np.full((len(x), 2), np.nan), torch.zeros(3, 1), lambda _: Scale(1.0, 0.0))
    assert nowhere is None


def test_modes_are_put_back() -> None:
    body = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    refuse_dependent_body(body.train(), torch.randn(8, 3), "model.py:make_body")
    assert body.training
    assert body[1].training
    x = torch.randn(4, 3)
    kept = x.clone()
    refuse_dependent_body(nn.ReLU(inplace=True), x, "model.py:make_body")
    assert_array_equal(x, kept)
