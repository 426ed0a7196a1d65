"""What training refuses: caches that are not whole, runs of something else, and settings of no use.

Changed data, views and members are in test_caching_refusals.py, a changed decoder in test_replay.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import contents, killed_at, make_folder, refused, save_data, save_member, settings

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.errors import EdistillError
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

RUN = "runs/hydra-s0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its cache and a finished run."""
    folder = make_folder(tmp_path_factory.mktemp("refusals") / "tiny")
    cache_logits(settings(folder))
    train(settings(folder))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def refuses(folder: Path, more: dict[str, Any], *said: str) -> None:
    """A new run is refused with these words, and leaves nothing behind."""
    cache = contents(folder / "cache")
    with refused(*said):
        train(settings(folder, {"output.name": "new", **more}))
    assert contents(folder / "cache") == cache
    assert not (folder / "runs/new/student.safetensors").exists()


def refuses_and_keeps(folder: Path, more: dict[str, Any], *said: str) -> None:
    """Also with --overwrite: what cannot be replaced is not dropped."""
    refuses(folder, more, *said)
    before = contents(folder / RUN)
    with refused(*said):
        train(settings(folder, {**more, "output.name": "hydra-s0"}), overwrite=True)
    assert contents(folder / RUN) == before


# --- the cache --------------------------------------------------------------------------------------------------


def test_without_a_cache_nothing_is_trained(folder: Path) -> None:
    refuses(folder, {"output.cache": "elsewhere"}, "elsewhere holds no cache", "Run edistill cache-logits first")


def test_an_unfinished_cache_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(4 * 3, monkeypatch, folder / "half") as happened:
        cache_logits(settings(folder, {"output.cache": "half"}))
    assert happened
    refuses(folder, {"output.cache": "half"}, "half is unfinished: train has no view", "cache-logits to finish it")


def test_a_cache_whose_extension_was_killed_is_refused_until_it_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_member(folder, 7)
    with killed_at(4 * 3, monkeypatch, folder / "cache") as happened:
        cache_logits(settings(folder))
    assert happened
    refuses(folder, {}, "cache is unfinished: train has no view of every member yet")
    cache_logits(settings(folder))
    assert train(settings(folder, {"output.name": "new"})).heads == 4


def test_a_member_that_is_not_cached_is_named(folder: Path) -> None:
    save_member(folder, 7)
    refuses(
        folder,
        {},
        "cache holds 3 members, and teachers.path has 4: member-7 is not cached",
        "Run edistill cache-logits to add it, or take it away",
    )


def test_more_views_than_are_cached_are_refused(folder: Path) -> None:
    refuses(folder, {"views.count": 5}, "holds 2 views of train, and 5 are asked for", "Run edistill cache-logits")
    assert train(settings(folder, {"views.count": 1, "output.name": "fewer"})).fresh


def test_a_split_that_is_not_cached_is_refused(folder: Path) -> None:
    save_data(folder, "transfer", 9)
    refuses(folder, {"data.transfer": "data/transfer.npz"}, "does not hold transfer", "Run edistill cache-logits")


def test_validation_data_that_changed_is_refused(folder: Path) -> None:
    save_data(folder, "validation", 13)
    refuses(folder, {}, "validation data", "(12 rows)", "(13 rows)")


Damage = Callable[[Path], None]


def missing(record: Path) -> None:
    record.unlink()


def truncated(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-1])


def bit_flipped(record: Path) -> None:
    content = bytearray(record.read_bytes())
    content[-1] ^= 128
    record.write_bytes(content)


def of_another_member(record: Path) -> None:
    shutil.copyfile(record.with_name("member-0.v1.npy"), record)


@pytest.mark.parametrize("damage", [missing, truncated, bit_flipped, of_another_member])
def test_a_damaged_record_is_refused_and_made_again(folder: Path, damage: Damage) -> None:
    whole = contents(folder / "cache")
    record = folder / "cache/records/train/member-2.v1.npy"
    damage(record)
    refuses(folder, {}, str(record), "is damaged", "Delete that file and run edistill cache-logits")
    record.unlink(missing_ok=True)
    assert cache_logits(settings(folder)).added == 1
    assert contents(folder / "cache") == whole
    train(settings(folder, {"output.name": "new"}))


def test_without_the_teachers_the_cache_is_enough(folder: Path) -> None:
    shutil.rmtree(folder / "teachers")
    assert train(settings(folder, {"output.name": "new"})).heads == 3


# --- another run ------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_their_key(folder: Path) -> None:
    for key, then, now in [
        ("train.lr", 0.01, 0.1),
        ("train.epochs", 3, 4),
        ("train.batch-size", 8, 4),
        ("train.opt", "adamw", "sgd"),
        ("train.model-ema", False, True),
        ("train.clip-grad", None, 1.0),
        ("views.count", 2, 1),
        ("views.seed", 0, 1),
        ("student.heads", [], [7]),
        ("student.kwargs", {}, {"width": 9}),
        ("student.init", None, "member-0"),
        ("teachers.average", "probabilities", "logits"),
        ("teachers.weights", None, [1.0, 2.0, 3.0]),
        ("method.temperature", None, 2.0),
    ]:
        before = contents(folder / RUN)
        told = "(default)" if then is None else repr(then)
        with refused(f"{folder / RUN} was made with {key} = {told}, but now it is {now!r}", "--name", "--overwrite"):
            train(settings(folder, {key: now}))
        assert contents(folder / RUN) == before


@pytest.mark.parametrize(
    "free",
    [
        {"train.workers": 1},
        {"train.checkpoint-minutes": 1},
        {"train.device": "auto"},
        {"data.test": None},
        {"cache.batch-size": 4},
    ],
    ids=str,
)
def test_settings_that_make_no_other_run_are_free(folder: Path, free: dict[str, Any]) -> None:
    assert not train(settings(folder, free)).fresh


def test_an_unfinished_run_is_refused_alike(folder: Path) -> None:
    (folder / RUN / "student.safetensors").unlink()
    with refused("was made with train.lr = 0.01, but now it is 0.1"):
        train(settings(folder, {"train.lr": 0.1}))
    assert train(settings(folder)).resumed_at == 15


def test_overwriting_makes_the_other_run(folder: Path) -> None:
    before = contents(folder / RUN)
    assert train(settings(folder, {"train.lr": 0.1}), overwrite=True).resumed_at == 0
    assert contents(folder / RUN)["student.safetensors"] != before["student.safetensors"]
    assert not train(settings(folder, {"train.lr": 0.1})).fresh


def test_a_run_belongs_to_its_members(folder: Path) -> None:
    before = contents(folder / RUN)
    save_member(folder, 7)
    cache_logits(settings(folder))
    said = ("was trained from members member-0, member-1, member-2,", "holds member-0, member-1, member-2, member-7")
    with refused(*said, "Choose another --name, or pass --overwrite"):
        train(settings(folder))
    save_member(folder, 0, seed=9)
    cache_logits(settings(folder), overwrite=True)
    with refused("was trained from members", "or others of these names"):
        train(settings(folder))
    assert contents(folder / RUN) == before


def test_a_run_belongs_to_its_data(folder: Path) -> None:
    before = contents(folder / RUN)
    save_data(folder, "train", 41)
    cache_logits(settings(folder), overwrite=True)
    with refused("was trained on train data", "Choose another --name, or pass --overwrite"):
        train(settings(folder))
    assert contents(folder / RUN) == before


def test_a_folder_that_is_no_run_is_left_alone(folder: Path) -> None:
    (folder / "runs/thesis").mkdir()
    (folder / "runs/thesis/chapter-1.tex").write_text("years of work")
    for overwrite in (False, True):
        with refused("thesis exists and is not a run (it holds chapter-1.tex)", "Name another folder"):
            train(settings(folder, {"output.name": "thesis"}), overwrite=overwrite)
    assert contents(folder / "runs/thesis") == {"chapter-1.tex": b"years of work"}


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


def test_useless_settings_are_refused_before_anything_is_lost(folder: Path) -> None:
    for more, said in USELESS:
        refuses_and_keeps(folder, more, *said)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_a_loss_that_is_not_finite_is_told_with_its_step(folder: Path, opt: str) -> None:
    body = "from torch import nn\ndef make_body():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12))\n"
    (folder / "plain.py").write_text(body)
    more = {
        "train.lr": 1e30,
        "train.opt": opt,
        "train.sched": "none",
        "student.model": "plain.py:make_body",
        "output.name": "diverging",
    }
    with pytest.raises(EdistillError) as caught:
        train(settings(folder, more))
    said = str(caught.value)
    assert said.startswith(("The loss is nan at step", "The loss is inf at step")), said
    assert "stage hinton, train.lr 1e+30" in said
    assert "Lower train.lr, set train.clip-grad" in said
    assert ("The last checkpoint is kept" in said) == (folder / "runs/diverging/checkpoint.safetensors").exists()
    assert not (folder / "runs/diverging/student.safetensors").exists()


def test_a_run_stays_until_the_one_that_replaces_it_has_a_checkpoint(folder: Path) -> None:
    before = contents(folder / RUN)
    diverging = {"train.lr": 1e30, "train.opt": "sgd", "train.sched": "none", "train.epochs": 1}
    with refused("The loss is"):
        train(settings(folder, {**diverging, "output.name": "hydra-s0"}), overwrite=True)
    assert contents(folder / RUN) == before
    assert not train(settings(folder)).fresh


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
    folder: Path, how: str, more: dict[str, Any], said: tuple[str, ...]
) -> None:
    (folder / "bodies.py").write_text(BODIES)
    more = {"student.model": "bodies.py:make_body", "student.kwargs": {"how": how}, **more}
    refuses_and_keeps(folder, more, *said)


@pytest.mark.parametrize("what", ["cache-logits", "train"])
def test_rows_of_another_kind_are_refused_before_anything_is_asked(folder: Path, what: str) -> None:
    np.savez(folder / "data/flat.npz", x=np.zeros((30, 36), np.float32))
    chosen = settings(folder, {"data.transfer": "data/flat.npz", "output.name": "mixed", "views.transform": "mixup"})
    with refused("data.transfer holds features", "data.train pixels", "Give rows like those"):
        cache_logits(chosen) if what == "cache-logits" else train(chosen)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_distill.training.rows import TeacherOutputs

    read, calls = TeacherOutputs.read, []

    def poisoned(self: TeacherOutputs, indices: Any) -> Any:
        calls.append(1)
        return read(self, indices) * (float("nan") if len(calls) == 23 else 1)  # ten batches are solved from

    monkeypatch.setattr(TeacherOutputs, "read", poisoned)
    with refused("The loss is nan at step 12 (stage heads, train.lr 0.01)", "The last checkpoint is kept"):
        train(settings(folder, {"output.name": "new"}))
    assert train(settings(folder, {"output.name": "new"})).resumed_at == 10
    student = (folder / "runs/new/student.safetensors").read_bytes()
    assert student == (folder / RUN / "student.safetensors").read_bytes()


def test_what_fails_after_a_loss_that_was_not_finite_is_told_as_that(folder: Path) -> None:
    (folder / "failing.py").write_text(FAILING)
    with refused("The loss is nan at step 2 (stage one"):
        train(settings(folder, {"output.name": "failing", "train.method": "failing.py:Failing"}))


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
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    refuses(folder, {}, "WORLD_SIZE 3", "MASTER_ADDR", "MASTER_PORT")


def test_an_environment_that_numbers_no_processes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, world in [("0", ""), ("x", "1"), ("0", "0"), ("5", "1"), ("-1", "1")]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        refuses(folder, {}, "The environment has", "Unset")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert train(settings(folder, {"output.name": "new"})).fresh


def test_names_of_classes_that_only_another_split_has_are_known_to_training_too(folder: Path) -> None:
    """Members were opened with them for the cache: opened without, their classes would seem to be in another order."""
    train_data, test_data = (dict(np.load(folder / f"data/{split}.npz")) for split in ("train", "test"))
    np.savez(folder / "data/named.npz", **train_data, classes=np.array(["a", "b", "c"]))
    first = {"data.train": "data/named.npz", "output.cache": "first", "output.runs": "members"}
    cache_logits(settings(folder, first))
    train(settings(folder, first))

    np.savez(folder / "data/nameless.npz", x=train_data["x"])
    y = (test_data["y"] + 1) % 3
    np.savez(folder / "data/test.npz", x=test_data["x"], y=y, classes=np.array(["c", "a", "b"]))
    second = {"data.train": "data/nameless.npz", "data.validation": None, "output.cache": "second"}
    second |= {"teachers.path": "members", "output.name": "second"}
    cache_logits(settings(folder, second))
    assert Manifest.load(folder / "second").members[0].class_order == (1, 2, 0)
    assert train(settings(folder, second)).heads == 1


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
