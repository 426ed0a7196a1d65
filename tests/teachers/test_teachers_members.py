"""`[teachers.members."pattern"]`: what only some members need to have said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from tiny import refused
from torch import nn

from ensemble_distill import cache_logits, load_settings, train
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import Settings, TeacherSettings, settings_from, settings_toml
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Context, Teacher

MODELS = """
from torch import nn

def small(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, classes))

def wide(width=5, channels=1, side=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, width), nn.ReLU(), nn.Linear(width, 3))

def body():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 4))
"""
NAMES = ("ape", "cat", "dog")
COLOR = {"size": [6, 6], "mean": [0.5], "std": [0.5]}
WIDE: dict[str, Any] = {
    "model": "model.py:wide",
    "model-kwargs": {"width": 7},
    "preprocessing": {"size": [8, 8], "std": [0.25], "channels": 1},
    "output": "probabilities",
    "classes": ["dog", "cat", "ape"],
    "weight": 3.0,
}


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 3))


def wide(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3))


def values(members: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"teachers": {"model": "model.py:small", "preprocessing": COLOR, "members": members, **more}}


def section(members: dict[str, Any], **more: Any) -> Settings:
    return settings_from(values(members, **more), Path.cwd())


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two architectures, which differ in size, channels, class order and what they return."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODELS)
    (tmp_path / "teachers").mkdir()
    for seed in range(2):
        save_file(small(seed).state_dict(), tmp_path / f"teachers/member-{seed}.safetensors")
    save_file(wide(2).state_dict(), tmp_path / "teachers/wide-0.safetensors")
    rng = np.random.default_rng(0)
    for split, rows in (("train", 12), ("test", 7)):
        x = rng.integers(0, 256, (rows, 6, 6, 3), np.uint8)
        np.savez(tmp_path / f"{split}.npz", x=x, y=np.arange(rows) % 3, classes=np.array(NAMES))
    return tmp_path


def opened(zoo: Path, members: dict[str, Any], names: tuple[str, ...] | None = None, **more: Any) -> list[Teacher]:
    return open_teachers(zoo / "teachers", Context(section(members, **more).teachers, names))


# --- settings ---------------------------------------------------------------------------------------------------


def test_the_first_pattern_that_fits_holds_and_the_rest_is_as_for_all() -> None:
    teachers = section({"wide-*": WIDE, "*-1": {"output": "probabilities"}, "wide-1": {"weight": 9}}).teachers
    names = ("member-0", "member-1", "wide-1")
    assert [teachers.pattern_of(name) for name in names] == [None, "*-1", "wide-*"]
    first, second, third = (teachers.of_pattern(teachers.pattern_of(name)) for name in names)
    assert (first.output, second.output, third.output) == ("logits", "probabilities", "probabilities")
    assert third.model == f"{Path.cwd()}/model.py:wide"
    assert third.model_kwargs == {"width": 7}
    assert third.preprocessing is not None
    assert third.preprocessing.model_dump(exclude_none=True) == {
        "size": (8, 8), "mean": (0.5,), "std": (0.25,), "channels": 1
    }  # fmt: skip
    assert teachers.shares(names) == (1.0, 1.0, 3.0)
    assert teachers.shares(names[:2]) is None


def test_arguments_go_with_their_model() -> None:
    teachers = section({"a": {"model": "m.py:a"}, "b": {"weight": 1}}, **{"model-kwargs": {"classes": 4}}).teachers
    assert teachers.of_pattern("a").model_kwargs == {}
    assert teachers.of_pattern("b").model_kwargs == {"classes": 4}


def test_tables_are_written_so_that_they_replay(tmp_path: Path) -> None:
    before = section({"wide-*": WIDE, "member.0": {"weight": 2}, 'a"b': {"weight": 1}})
    (tmp_path / "args.toml").write_text(settings_toml(before, tmp_path))
    after = load_settings(tmp_path / "args.toml")
    assert after == before
    assert list(after.teachers.members) == list(before.teachers.members)


def test_a_flag_reaches_a_table(tmp_path: Path) -> None:
    (tmp_path / "edistill.toml").write_text('[teachers.members."a.b-*"]\nweight = 1\n')
    settings = load_settings(tmp_path, {'teachers.members."a.b-*".weight': 4.0, "teachers.members.c.weight": 2.0})
    assert {name: table.weight for name, table in settings.teachers.members.items()} == {"a.b-*": 4.0, "c": 2.0}


@pytest.mark.parametrize(
    ("members", "more", "told"),
    [
        ({"wide-*": {"modle": "x"}}, {}, 'members."wide-*".modle. Did you mean teachers.members."wide-*".model?'),
        ({"w": {"preprocessing": {"sise": 1}}}, {}, "Did you mean teachers.members.w.preprocessing.size?"),
        ({"w": {"path": "x"}}, {}, "unknown key teachers.members.w.path"),
        ({"w": {"weight": -1}}, {}, "teachers.members.w.weight is -1"),
        ({"w": {"classes": []}}, {}, "teachers.members.w.classes is []"),
        ({"w": {"preprocessing": {"channels": 3}}}, {}, "teachers.members.w.preprocessing.channels is 3"),
        ({"w": {"weight": 2}}, {"weights": [1, 2]}, "members.w.weight is 2, and teachers.weights lists [1.0, 2.0]"),
        ({"w": {"output": "mean"}}, {}, "members.w.output is 'mean', and the task is classification"),
        ({"w": {"variance": 2.0}}, {}, "members.w.variance is 2.0, but teachers.members.w.output is 'logits'"),
        ({"w": {"standardized": {"mean": 1, "std": 1}}}, {}, "members.w.standardized is set, and the task is"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused_by_its_key(members: dict[str, Any], more: dict[str, Any], told: str) -> None:
    with pytest.raises(EdistillError) as refusal:
        section(members, **more)
    assert told in str(refusal.value)


def test_regressors_of_several_forms() -> None:
    regression = {"task": "regression", "teachers": {"output": "mean", "variance": 2.0}}
    table = {"deep": {"output": "mean-variance"}}
    settings = settings_from({**regression, "teachers": {**regression["teachers"], "members": table}}, Path.cwd())
    assert settings.teachers.of_pattern(None).variance == 2.0
    assert settings.teachers.of_pattern("deep").variance is None
    with refused("teachers.members.w.classes is set", "regression"):
        table = {"w": {"classes": ["a"]}}
        settings_from({**regression, "teachers": {**regression["teachers"], "members": table}}, Path.cwd())
    with refused("teachers.members.w.variance", 'output is "mean"'):
        teachers = {"output": "mean-logvar", "members": {"w": {"output": "mean"}}}
        settings_from({"task": "regression", "teachers": teachers}, Path.cwd())


# --- members ----------------------------------------------------------------------------------------------------


def test_several_architectures_sizes_channels_and_class_orders_are_one_ensemble(zoo: Path) -> None:
    (zoo / "edistill.toml").write_text("")
    data = {"train": str(zoo / "train.npz"), "test": str(zoo / "test.npz")}
    probabilities = {**WIDE, "model": "model.py:softmax"}
    softmax = "def softmax(**kwargs):\n    return nn.Sequential(*wide(**kwargs), nn.Softmax(1))\n"
    (zoo / "model.py").write_text(MODELS + softmax)
    settings = settings_from(
        {**values({"wide-*": probabilities}), "data": data, "student": {"model": "model.py:body"}}
        | {"train": {"epochs": 1, "batch-size": 4, "device": "cpu"}, "cache": {"dtype": "float32"}},
        zoo,
    )
    cache_logits(settings)
    said = Cache(zoo / "cache").open("test").read(range(7))
    pixels = np.load(zoo / "test.npz")["x"]
    x = torch.from_numpy((pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()
    with torch.no_grad():
        for seed in range(2):
            assert_allclose(said[:, seed], small(seed)(x), atol=1e-5)
        (teacher,) = [t for t in opened(zoo, {"wide-*": probabilities}, NAMES) if t.member.name == "wide-0"]
        assert teacher.member.preprocessing is not None
        assert teacher.member.preprocessing.size == (8, 8)
        from PIL import Image

        grays = [np.asarray(Image.fromarray(p).convert("L").resize((8, 8), Image.Resampling.BILINEAR)) for p in pixels]
        gray = torch.from_numpy((np.stack(grays)[:, None] / 255 - 0.5) / 0.25).float()
        wanted = wide(2)(gray).log_softmax(1)[:, [2, 1, 0]]  # dog, cat, ape to ape, cat, dog
    assert_allclose(said[:, 2], wanted, atol=1e-4)
    assert Manifest.load(zoo / "cache").members[2].class_order == (2, 1, 0)
    train(settings)
    from ensemble_distill.runs.run import Run

    assert Run.open(zoo / "runs/hydra-s0").architecture.weights == (1.0, 1.0, 3.0)
    heavier = {**probabilities, "weight": 5.0}
    with refused("runs/hydra-s0 was made with", 'teachers.members."wide-*".weight', "3.0", "5.0"):
        train(settings.model_copy(update={"teachers": section({"wide-*": heavier}).teachers}))


def test_a_pattern_that_fits_nobody_is_refused(zoo: Path) -> None:
    with refused('teachers.members."wyde-*" holds for no member', "member-0, member-1, wide-0"):
        opened(zoo, {"wyde-*": {"weight": 2.0}})
    with refused("teachers.members.wide-0 holds for no member", "wide-0 fit 'w*'", "Put it first"):
        opened(zoo, {"w*": {**WIDE, "classes": None}, "wide-0": {"weight": 2.0}})


def test_weights_that_are_all_0_are_refused(zoo: Path) -> None:
    with refused("teachers.members come to [0.0, 0.0, 0.0]"):
        opened(zoo, {"*": {"weight": 0.0, "model": "model.py:small"}})


def test_classes_by_name_or_by_number(zoo: Path) -> None:
    order = {"member-*": {"classes": ["b", "c", "a"]}, "w*": WIDE | {"classes": ["a", "b", "c"]}}
    assert [t.member.class_order for t in opened(zoo, order, ("a", "b", "c"))] == [(1, 2, 0), (1, 2, 0), None]
    numbers = {"*": {"classes": ["2", "0", "1"]}}
    assert opened(zoo, numbers)[0].member.class_order == (2, 0, 1)
    with refused('teachers.members."*".classes names 3 classes', "only there: x", "only in the data: c"):
        opened(zoo, {"*": {"classes": ["a", "b", "x"]}}, ("a", "b", "c"))


def test_classes_that_contradict_a_member_s_own_file_are_refused(tmp_path: Path) -> None:
    teachers = TeacherSettings.model_validate({"members": {"*": {"classes": ["b", "a"]}}})
    context = Context(teachers, ("a", "b")).of("m")
    assert context.order("m") == (1, 0)
    assert context.order("m", ["b", "a"], "config.json") == (1, 0)
    assert context.order("m", ["LABEL_0", "LABEL_1"], "config.json") == (1, 0)
    with refused("teachers.members.\"*\".classes is ['b', 'a']", "config.json of member m says ['a', 'b']"):
        context.order("m", ["a", "b"], "config.json")
