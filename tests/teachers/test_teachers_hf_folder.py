"""Hugging Face folders, written by timm itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from teachers_helpers import SMALL, assert_equal_outputs, context, small_model
from timm.data import resolve_data_config
from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.teachers import hf_folder


def write_hf(folder: Path, model: nn.Module, **config: Any) -> Path:
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def told_in_full(config: dict[str, Any]) -> None:
    """timm before 1.0.31 leaves it to whoever saves to say what was not the architecture's own."""
    if "model_args" not in config:
        config["model_args"] = {"img_size": 32, "in_chans": 1}
        config["pretrained_cfg"] |= {"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_saved_for_the_hub_is_rebuilt(tmp_path: Path, safe: bool) -> None:
    original = small_model(global_pool="max")
    timm.models.save_for_hf(original, tmp_path / "m.v1", safe_serialization=safe)
    assert hf_folder.claims(tmp_path / "m.v1")
    teacher = hf_folder.load(tmp_path / "m.v1", context(preprocessing=SMALL))
    assert_equal_outputs(teacher.build(), original)
    own = resolve_data_config(model=original)
    assert teacher.member.preprocessing == Preprocessing(
        tuple(own["input_size"][1:]),
        own["mean"],
        own["std"],
        own["interpolation"],
        own["crop_pct"],
        own["crop_mode"],
    )
    assert (teacher.member.name, teacher.member.model) == ("m.v1", "test_resnet")


def test_a_transformer_of_another_input_size_is_rebuilt(tmp_path: Path) -> None:
    original = small_model(name="test_vit", img_size=32, in_chans=1)
    folder = write_hf(tmp_path, original)
    edit(folder, told_in_full)
    teacher = hf_folder.load(folder, context())
    assert_equal_outputs(teacher.build(), original, (2, 1, 32, 32))
    assert teacher.member.preprocessing is not None
    assert teacher.member.preprocessing.size == (32, 32)
    assert len(teacher.member.preprocessing.mean) == 1


def test_the_settings_fill_what_the_config_leaves_out(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, small_model())
    edit(folder, lambda c: [c["pretrained_cfg"].pop(key) for key in ("std", "crop_pct", "interpolation")])
    preprocessing = hf_folder.load(folder, context(preprocessing=SMALL)).member.preprocessing
    own = timm.models.get_pretrained_cfg("test_resnet")
    assert preprocessing is not None
    assert (preprocessing.std, preprocessing.mean) == ((0.25,), tuple(own.mean))
    assert (preprocessing.crop_pct, preprocessing.interpolation) == (own.crop_pct, own.interpolation)


def test_timms_first_layout_is_read(tmp_path: Path) -> None:
    original = small_model()
    folder = write_hf(tmp_path, original)
    edit(folder, lambda c: (c.update(c.pop("pretrained_cfg") | c), c.update(labels=["c", "a", "b"])))
    teacher = hf_folder.load(folder, context(("a", "b", "c")))
    assert_equal_outputs(teacher.build(), original)
    assert teacher.member.class_order == (2, 0, 1)


@pytest.mark.parametrize("labels", [["c", "a", "b"], {"0": "c", "1": "a", "2": "b"}, {"2": "b", "0": "c", "1": "a"}])
def test_label_names_give_the_order(tmp_path: Path, labels: Any) -> None:
    folder = write_hf(tmp_path, small_model(), label_names=labels)
    assert hf_folder.load(folder, context(("a", "b", "c"))).member.class_order == (2, 0, 1)
    assert hf_folder.load(folder, context(("c", "a", "b"))).member.class_order is None
    assert hf_folder.load(folder, context(None)).member.class_order is None


def test_without_label_names_the_datas_order_is_assumed(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, small_model())
    assert hf_folder.load(folder, context(("x", "y", "z"))).member.class_order is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(label_names=["a", "b", "dog"]), "only there: dog; only in the data: c"),
        (lambda c: c.update(label_names=["a", "b"]), "3 num_classes, but label_names names 2"),
        (lambda c: c.update(label_names={"0": "a", "2": "b"}), "3 num_classes, but label_names names 2"),
        (lambda c: c.update(architecture="resnet_x"), r"architecture in .*config\.json is 'resnet_x'"),
        (
            lambda c: (c.pop("architecture"), c.update(architectures=["ViTModel"])),
            r"describes \['ViTModel'\].*save_for_hf",
        ),
        (
            lambda c: (c.pop("num_classes"), c["pretrained_cfg"].pop("num_classes")),
            "does not say num_classes",
        ),
    ],
)
def test_configs_that_cannot_be_followed_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    folder = write_hf(tmp_path, small_model())
    edit(folder, change)
    with pytest.raises(EdistillError, match=message):
        hf_folder.load(folder, context(("a", "b", "c")))


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "no key architecture")])
def test_configs_that_cannot_be_read_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write_hf(tmp_path, small_model())
    (folder / "config.json").write_text(text)
    assert hf_folder.claims(folder)
    with pytest.raises(EdistillError, match=message):
        hf_folder.load(folder, context())


def test_our_own_runs_are_not_claimed(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, small_model())
    edit(folder, lambda c: c.update(edistill="0.1"))
    assert not hf_folder.claims(folder)


def test_a_config_alone_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert not hf_folder.claims(tmp_path)
    assert not hf_folder.claims(tmp_path / "gone")


def test_a_folder_that_does_not_fit_points_to_its_config(tmp_path: Path) -> None:
    folder = write_hf(tmp_path, small_model())
    edit(folder, lambda c: c.update(num_classes=8))
    with pytest.raises(EdistillError, match=r"trained on 3 classes.*built for 8.*in .*config\.json"):
        hf_folder.load(folder, context()).build()
