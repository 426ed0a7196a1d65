"""Bare checkpoints: modules from factories and timm names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from teachers_helpers import SMALL, assert_equal_outputs, context, net, small_model
from timm.data import resolve_data_config

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.teachers import checkpoint, fit
from ensemble_distill.teachers.states import digest

FACTORY = """
from torch import nn
def make(num_classes=3, width=4):
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes))
def not_a_module():
    return {}
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(FACTORY)
    save_file(net().state_dict(), tmp_path / "a.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.PT", "a.bin", "a.pth.tar"])
def test_checkpoint_files_are_claimed(tmp_path: Path, name: str) -> None:
    assert not checkpoint.claims(tmp_path / name)
    (tmp_path / name).touch()
    assert checkpoint.claims(tmp_path / name)


def test_a_factory_builds_the_module(bare: Path) -> None:
    teacher = checkpoint.load(
        bare / "a.safetensors", context(model=f"{bare / 'model.py'}:make", output="probabilities")
    )
    state = torch.random.get_rng_state()
    module = teacher.build()
    assert torch.equal(torch.random.get_rng_state(), state), "building disturbed the caller's random numbers"
    original = net().eval()
    fit.load_weights(original, module.state_dict(), "m")
    assert_equal_outputs(module, original, (2, 5))
    member = teacher.member
    assert (member.name, member.output, member.class_order) == ("a", "probabilities", None)
    assert member.model == "model.py:make"
    assert member.preprocessing is None
    assert member.sha256 == digest(module.state_dict())


def test_a_factory_of_a_package_is_found(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "teacher_factories.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(bare))
    teacher = checkpoint.load(bare / "a.safetensors", context(model="teacher_factories:make"))
    assert teacher.member.model == "teacher_factories:make"
    assert teacher.build()(torch.zeros(2, 5)).shape == (2, 3)
    sys.modules.pop("teacher_factories")


def test_each_build_is_a_module_of_its_own(bare: Path) -> None:
    teacher = checkpoint.load(bare / "a.safetensors", context(model=f"{bare / 'model.py'}:make"))
    first, second = teacher.build(), teacher.build()
    first[0].weight.fill_(0.0)
    assert second[0].weight.abs().sum() > 0


def test_a_file_that_changes_meanwhile_is_refused(bare: Path) -> None:
    teacher = checkpoint.load(bare / "a.safetensors", context(model=f"{bare / 'model.py'}:make"))
    save_file(net().state_dict(), bare / "a.safetensors")
    with pytest.raises(EdistillError, match=rf"has changed since it was listed.*{teacher.member.sha256[:12]}"):
        teacher.build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"a\.safetensors is a bare checkpoint.*teachers\.model = "),
        (
            {"model": "test_resent"},
            "teachers.model is 'test_resent', which timm .* does not have.*test_resnet",
        ),
        ({"model": "zzzzqqqq"}, r"timm\.list_models\(\) lists them"),
        ({"model": "test_resnet.no_such_tag"}, "Invalid pretrained tag.*without what follows the dot"),
        ({"model": "model.py:make", "preprocessing": {"mean": [0.5]}}, "a: preprocessing lacks size and std"),
        ({"model": "test_resnet", "preprocessing": {"crop_mode": "round"}}, "a: preprocessing.crop-mode is 'round'"),
    ],
)
def test_what_cannot_be_listed_is_refused(
    bare: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(bare)
    with pytest.raises(EdistillError, match=message):
        checkpoint.load(bare / "a.safetensors", context(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "model.py:not_a_module"},
            r"model\.py:not_a_module returned a dict, not a torch\.nn\.Module",
        ),
        ({"model": "model.py:gone"}, "has no callable gone"),
        ({"model": "model.py:make", "model_kwargs": {"depth": 3}}, r"(?s)make\(depth=3\) raised TypeError"),
        ({"model": "model.py:make", "model_kwargs": {"num_classes": 5}}, "trained on 3 classes.*built for 5"),
        (
            {"model": "test_resnet", "model_kwargs": {"depth": 3}},
            r"cannot build test_resnet with .*'depth': 3",
        ),
        ({"model": "test_resnet"}, "a does not fit its module"),
    ],
)
def test_what_cannot_be_built_is_refused(
    bare: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(bare)
    teacher = checkpoint.load(bare / "a.safetensors", context(**settings))
    with pytest.raises(EdistillError, match=message):
        teacher.build()


def test_a_factorys_preprocessing_is_what_the_settings_say(bare: Path) -> None:
    teacher = checkpoint.load(bare / "a.safetensors", context(model=f"{bare / 'model.py'}:make", preprocessing=SMALL))
    assert teacher.member.preprocessing == Preprocessing((32, 32), (0.5,), (0.25,), "bilinear", 1.0, "center")


def test_a_timm_name_needs_no_class_count_and_brings_its_preprocessing(tmp_path: Path) -> None:
    original = small_model(num_classes=6)
    torch.save({"state_dict": original.state_dict()}, tmp_path / "a.pth.tar")
    teacher = checkpoint.load(
        tmp_path / "a.pth.tar",
        context(model="test_resnet", preprocessing={"size": [32, 48], "crop_pct": 0.8}),
    )
    assert_equal_outputs(teacher.build(), original)
    own = resolve_data_config(model=original)
    assert teacher.member.preprocessing == Preprocessing(
        (32, 48), own["mean"], own["std"], own["interpolation"], 0.8, own["crop_mode"]
    )
    assert (teacher.member.name, teacher.member.model) == ("a", "test_resnet")


def test_a_gray_timm_model_averages_the_channels_statistics(tmp_path: Path) -> None:
    save_file(small_model(name="test_vit", in_chans=1, img_size=32).state_dict(), tmp_path / "a.safetensors")
    settings = {"model": "test_vit", "model_kwargs": {"in_chans": 1, "img_size": 32}}
    teacher = checkpoint.load(tmp_path / "a.safetensors", context(**settings))
    own = timm.models.get_pretrained_cfg("test_vit")
    preprocessing = teacher.member.preprocessing
    assert preprocessing is not None
    assert preprocessing.size == (32, 32)
    assert preprocessing.mean == pytest.approx([sum(own.mean) / 3])
    assert teacher.build()(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
