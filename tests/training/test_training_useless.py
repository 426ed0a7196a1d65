"""What training refuses of settings, bodies and rows that are of no use, and that the run of before stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import contents, make_folder, refused, settings
from training_helpers import RUN, refuses

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.errors import EdistillError
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train


def refuses_and_keeps(folder: Path, more: dict[str, Any], *said: str) -> None:
    """Also with --overwrite: what cannot be replaced is not dropped."""
    refuses(folder, more, *said)
    before = contents(folder / RUN)
    with refused(*said):
        train(settings(folder, {**more, "output.name": "hydra-s0"}), overwrite=True)
    assert contents(folder / RUN) == before


# --- settings of no use -----------------------------------------------------------------------------------------


USELESS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"student.model": None}, ("student.model is not set", "model.py:make_body")),
    ({"student.model": "model.py:nothing"}, ("nothing", "make_body")),
    ({"student.kwargs": {"depth": 3}}, ("depth",)),
    ({"student.model": "resnet18_"}, ("resnet18_", "timm does not know", "resnet18")),
    ({"student.init": "member-9"}, ("student.init is 'member-9', and the members are member-0, member-1, member-2",)),
    ({"student.init": "member-0"}, ("student.init is 'member-0', but the body's 2.weight is (12, 36)", "(3, 36)")),
    ({"teachers.weights": [1, 2]}, ("teachers.weights has 2 values for 3 members",)),
    ({"train.method": "hydro"}, ("train.method is 'hydro', which is not a method", "Did you mean hydra?")),
    ({"method.temprature": 2}, ("method.temprature is not an option of hydra", "temperature, hinton-share")),
    ({"method.temperature": 0}, ("method.temperature is 0", "greater than or equal to 0.05")),
    ({"train.opt": "adamww"}, ("train.opt is 'adamww', which timm refuses",)),
    ({"train.opt": "adahessian"}, ("train.opt is 'adahessian', which needs second derivatives",)),
    ({"train.device": "cuda:77"}, ("Device 'cuda:77' cannot be used", "Try --device cpu or auto")),
    (
        {"train.epochs": 1, "train.batch-size": 40},
        ("Training has 1 steps, and the method has 2 stages (hinton, heads)", "Raise train.epochs", "train.batch-size"),
    ),
    ({"data.train": None}, ("data.train is not set",)),
]


def test_useless_settings_are_refused_before_anything_is_lost(finished: Path) -> None:
    for more, said in USELESS:
        refuses_and_keeps(finished, more, *said)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_loss_that_is_not_finite_is_told_with_its_step(finished: Path, opt: str) -> None:
    body = "from torch import nn\ndef make_body():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12))\n"
    (finished / "plain.py").write_text(body)
    more = {
        "train.lr": 1e30,
        "train.opt": opt,
        "train.sched": "none",
        "student.model": "plain.py:make_body",
        "output.name": "diverging",
    }
    with pytest.raises(EdistillError) as caught:
        train(settings(finished, more))
    said = str(caught.value)
    assert said.startswith(("The loss is nan at step", "The loss is inf at step")), said
    assert "stage hinton, train.lr 1e+30" in said
    assert "Lower train.lr, set train.clip-grad" in said
    assert ("The last checkpoint is kept" in said) == (finished / "runs/diverging/checkpoint.safetensors").exists()
    assert not (finished / "runs/diverging/student.safetensors").exists()


def test_a_run_stays_until_the_one_that_replaces_it_has_a_checkpoint(finished: Path) -> None:
    before = contents(finished / RUN)
    diverging = {"train.lr": 1e30, "train.opt": "sgd", "train.sched": "none", "train.epochs": 1}
    with refused("The loss is"):
        train(settings(finished, {**diverging, "output.name": "hydra-s0"}), overwrite=True)
    assert contents(finished / RUN) == before
    assert not train(settings(finished)).fresh


BODIES = """
import torch
from torch import nn


class Body(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(36, 12), how

    def forward(self, x):
        if self.how == "picky" and not self.training and len(x) > 8:
            raise ValueError("too many")
        x = self.linear(x.flatten(1))
        return x.double() if self.how == "double" else x / 0 if self.how == "divided" and len(x) > 2 else x


def make_body(how):
    return Body(how)
"""


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        ("picky", {"train.epochs": 2}, ("fails in eval mode on 12 rows: ValueError: too many", "take fewer rows")),
        ("double", {}, ("returns features of torch.float64 for rows of torch.float32", ".float()")),
        ("divided", {"train.epochs": 0, "method.hinton-share": 0.0}, ("not finite: head 0, at training row 0",)),
    ],
)
def test_a_body_that_is_no_use_takes_nothing_with_it(
    finished: Path, how: str, more: dict[str, Any], said: tuple[str, ...]
) -> None:
    (finished / "bodies.py").write_text(BODIES)
    more = {"student.model": "bodies.py:make_body", "student.kwargs": {"how": how}, **more}
    refuses_and_keeps(finished, more, *said)


@pytest.mark.parametrize("what", ["cache-logits", "train"])
def test_rows_of_another_kind_are_refused_before_anything_is_asked(finished: Path, what: str) -> None:
    np.savez(finished / "data/flat.npz", x=np.zeros((30, 36), np.float32))
    chosen = settings(finished, {"data.transfer": "data/flat.npz", "output.name": "mixed", "views.transform": "mixup"})
    with refused("data.transfer holds features", "data.train pixels", "Give rows like those"):
        cache_logits(chosen) if what == "cache-logits" else train(chosen)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_distill.training.rows import TeacherOutputs

    read, calls = TeacherOutputs.read, []

    def poisoned(self: TeacherOutputs, indices: Any) -> Any:
        calls.append(1)
        return read(self, indices) * (float("nan") if len(calls) == 23 else 1)  # ten batches are solved from

    monkeypatch.setattr(TeacherOutputs, "read", poisoned)
    with refused("The loss is nan at step 12 (stage heads, train.lr 0.01)", "The last checkpoint is kept"):
        train(settings(finished, {"output.name": "new"}))
    assert train(settings(finished, {"output.name": "new"})).resumed_at == 10
    student = (finished / "runs/new/student.safetensors").read_bytes()
    assert student == (finished / RUN / "student.safetensors").read_bytes()


def test_what_fails_after_a_loss_that_was_not_finite_is_told_as_that(finished: Path) -> None:
    (finished / "failing.py").write_text(FAILING)
    with refused("The loss is nan at step 2 (stage one"):
        train(settings(finished, {"output.name": "failing", "train.method": "failing.py:Failing"}))


FAILING = """
from ensemble_distill.methods.method import Method, Stage


class Failing(Method):
    title, paper, outputs = "fails on the step after a loss that is no number", "none", "one distribution"

    def heads(self, members):
        return 1

    def stages(self, options, members):
        def loss(batch, student, step):
            assert step.index < 3
            return student.means().sum() * (float("nan") if step.index == 2 else 1)

        return [Stage("one", 1.0, lambda student: student, loss)]
"""


def test_several_processes_that_nobody_brought_together_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    refuses(finished, {}, "WORLD_SIZE 3", "MASTER_ADDR", "MASTER_PORT")


def test_an_environment_that_numbers_no_processes_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, world in [("0", ""), ("x", "1"), ("0", "0"), ("5", "1"), ("-1", "1")]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        refuses(finished, {}, "The environment has", "Unset")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert train(settings(finished, {"output.name": "new"})).fresh


def test_names_of_classes_that_only_another_split_has_are_known_to_training_too(finished: Path) -> None:
    """Members were opened with them for the cache: opened without, their classes would seem to be in another order."""
    train_data, test_data = (dict(np.load(finished / f"data/{split}.npz")) for split in ("train", "test"))
    np.savez(finished / "data/named.npz", **train_data, classes=np.array(["a", "b", "c"]))
    first = {"data.train": "data/named.npz", "output.cache": "first", "output.runs": "members"}
    cache_logits(settings(finished, first))
    train(settings(finished, first))

    np.savez(finished / "data/nameless.npz", x=train_data["x"])
    y = (test_data["y"] + 1) % 3
    np.savez(finished / "data/test.npz", x=test_data["x"], y=y, classes=np.array(["c", "a", "b"]))
    second = {"data.train": "data/nameless.npz", "data.validation": None, "output.cache": "second"}
    second |= {"teachers.path": "members", "output.name": "second"}
    cache_logits(settings(finished, second))
    assert Manifest.load(finished / "second").members[0].class_order == (1, 2, 0)
    assert train(settings(finished, second)).heads == 1


def test_no_epochs_are_for_what_is_solved_for(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f")
    cache_logits(settings(folder))
    for more in ({}, {"train.method": "kd"}, {"method.hinton-share": 0, "method.closed-form": False}):
        with refused("train.epochs is 0, and the method begins with stage", "which solves for nothing"):
            train(settings(folder, {"train.epochs": 0, **more}))
    solved = {"train.epochs": 0, "method.closed-form": True, "method.hinton-share": 0}
    assert train(settings(folder, solved)).fresh
    assert not train(settings(folder, solved)).fresh


def test_no_epochs_over_another_run_leave_nothing_of_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f")
    cache_logits(settings(folder))
    solved = {"method.closed-form": True, "method.hinton-share": 0, "output.name": "run"}
    train(settings(folder, {**solved, "train.epochs": 1}))
    (folder / "runs/run/calibration.json").write_text("{}")
    train(settings(folder, {**solved, "train.epochs": 0}), overwrite=True)
    assert {path.name for path in (folder / "runs/run").iterdir()} - {".lock"} == {
        *("args.toml", "config.json", "student.safetensors")
    }
    assert not train(settings(folder, {**solved, "train.epochs": 0})).fresh
