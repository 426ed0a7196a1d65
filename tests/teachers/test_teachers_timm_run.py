"""timm's run folders, against timm itself."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from teachers_helpers import SMALL, assert_equal_outputs, context, small_model
from timm.data import resolve_data_config
from timm.utils.misc import natural_key
from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.teachers import timm_run
from ensemble_distill.teachers.states import digest


def write_run(folder: Path, trained: nn.Module, names: tuple[str, ...] = ("model_best",), **changes: Any) -> Path:
    """What timm's train.py leaves: a checkpoint with its Namespace and optimizer, and args.yaml."""
    args: dict[str, Any] = {"model": "test_resnet", "num_classes": 3, "in_chans": None, "gp": None}
    args |= {"input_size": [3, 32, 32], "img_size": None, "interpolation": "", "crop_pct": None}
    args |= {"mean": None, "std": None, "dataset": "", "class_map": "", "model_kwargs": {}} | changes
    folder.mkdir(exist_ok=True)
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    optimizer = torch.optim.AdamW(trained.parameters()).state_dict()
    content = {"epoch": 4, "args": argparse.Namespace(**args), "metric": 50.0, "optimizer": optimizer}
    for name in names:
        torch.save({**content, "state_dict": trained.state_dict()}, folder / f"{name}.pth.tar")
    return folder


def test_a_run_is_rebuilt_from_its_args(tmp_path: Path) -> None:
    original = small_model()
    run = write_run(tmp_path / "resnet.run-1", original, crop_pct=0.9, std=[0.2, 0.3, 0.4])
    assert timm_run.claims(run)
    teacher = timm_run.load(run, context())
    assert_equal_outputs(teacher.build(), original)
    args = yaml.safe_load((run / "args.yaml").read_text())
    own = resolve_data_config(args, model=original)
    assert teacher.member.preprocessing == Preprocessing(
        tuple(own["input_size"][1:]),
        own["mean"],
        own["std"],
        own["interpolation"],
        own["crop_pct"],
        own["crop_mode"],
    )
    assert teacher.member.preprocessing.crop_pct == 0.9
    assert (teacher.member.name, teacher.member.model) == ("resnet.run-1", "test_resnet")
    assert teacher.member.sha256 == digest(original.state_dict())


def test_the_settings_preprocessing_does_not_overrule_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small_model())
    assert timm_run.load(run, context(preprocessing=SMALL)).member == timm_run.load(run, context()).member


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (("last", "model_best", "checkpoint-9"), "model_best"),
        (("checkpoint-4", "last"), "last"),
        (("checkpoint-9", "checkpoint-10", "recovery-11-0"), "checkpoint-10"),
    ],
)
def test_one_run_is_one_member(tmp_path: Path, present: tuple[str, ...], chosen: str) -> None:
    for seed, name in enumerate(present):
        original = small_model(seed)
        write_run(tmp_path, original, (name,))
        if name == chosen:
            expected = digest(original.state_dict())
    assert timm_run.load(tmp_path, context()).member.sha256 == expected


def test_safetensors_stand_for_a_run_too(tmp_path: Path) -> None:
    original = small_model()
    write_run(tmp_path, small_model(1), ("last",))
    save_file(original.state_dict(), tmp_path / "model_best.safetensors")
    assert_equal_outputs(timm_run.load(tmp_path, context()).build(), original)


def test_a_folder_without_args_or_checkpoint_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", small_model(), ("recovery-1-2",))
    write_run(tmp_path / "b", small_model())
    (tmp_path / "b" / "args.yaml").unlink()
    assert not timm_run.claims(tmp_path / "a")
    assert not timm_run.claims(tmp_path / "b")


def test_a_runs_moving_average_is_what_counts(tmp_path: Path) -> None:
    raw, averaged = small_model(0), small_model(1)
    run = write_run(tmp_path, raw)
    content = torch.load(run / "model_best.pth.tar", weights_only=False)
    content["state_dict_ema"] = {f"module.{key}": value for key, value in averaged.state_dict().items()}
    torch.save(content, run / "model_best.pth.tar")
    assert_equal_outputs(timm_run.load(run, context()).build(), averaged)


def test_args_that_change_the_module_are_followed(tmp_path: Path) -> None:
    special = {"in_chans": 1, "global_pool": "max", "bn_eps": 0.1}
    original = small_model(name="test_efficientnet", num_classes=5, **special)
    args = {"input_size": [1, 32, 32], "gp": "max", "bn_eps": 0.1, "drop": 0.5, "num_classes": None}
    run = write_run(tmp_path, original, model="test_efficientnet", **args)
    teacher = timm_run.load(run, context())
    assert_equal_outputs(teacher.build(), original, (2, 1, 32, 32))
    assert teacher.member.preprocessing is not None
    own = timm.models.get_pretrained_cfg("test_efficientnet")
    assert teacher.member.preprocessing.mean == pytest.approx([sum(own.mean) / 3])


@pytest.mark.parametrize("size", [{"input_size": [3, 32, 32]}, {"input_size": None, "img_size": 32}])
def test_models_of_one_input_size_are_built_for_the_runs(tmp_path: Path, size: dict[str, Any]) -> None:
    original = small_model(name="test_vit", img_size=32)
    run = write_run(tmp_path, original, model="test_vit", **size)
    teacher = timm_run.load(run, context())
    assert teacher.member.preprocessing is not None
    assert teacher.member.preprocessing.size == (32, 32)
    assert_equal_outputs(teacher.build(), original)


def test_folders_in_natural_order_are_mapped_to_the_datas(tmp_path: Path) -> None:
    classes = tuple(sorted(["class10", "class2", "Class1"]))
    order = timm_run.load(write_run(tmp_path, small_model()), context(classes)).member.class_order
    assert order is not None
    assert [classes[index] for index in order] == sorted(classes, key=natural_key) == ["Class1", "class2", "class10"]
    alike = timm_run.load(tmp_path, context(("ant", "bee", "cat")))
    assert alike.member.class_order is None


@pytest.mark.parametrize("dataset", ["torch/image_folder", "hfds/cifar10", "tfds/mnist"])
def test_other_datasets_than_folders_keep_their_own_order(tmp_path: Path, dataset: str) -> None:
    run = write_run(tmp_path, small_model(), dataset=dataset)
    assert timm_run.load(run, context(("class1", "class10", "class2"))).member.class_order is None


@pytest.mark.parametrize("place", ["beside", "as given"])
def test_a_class_map_gives_the_order(tmp_path: Path, place: str) -> None:
    given = tmp_path / "maps" / "map.txt"
    run = write_run(tmp_path / "run", small_model(), class_map=str(given))
    file = given if place == "as given" else run / "map.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("cat\nant\nbee\n")
    assert timm_run.load(run, context(("ant", "bee", "cat"))).member.class_order == (2, 0, 1)
    assert timm_run.load(run, context(None)).member.class_order is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "no_such_model_xyz"}, r"model in .*args\.yaml is 'no_such_model_xyz'"),
        ({"num_classes": 4}, r"run has 4 classes, but the data has 3"),
        ({"class_map": "gone.txt"}, r"class_map gone\.txt, which is not there\. Put .*run/gone\.txt"),
        ({"class_map": "map.pkl"}, r"class_map map\.pkl, which is not a \.txt file"),
        ({"class_map": "other.txt"}, r"other\.txt names 3 classes.*only there: dog; only in the data: cat"),
        ({"input_size": [32, 32]}, "preprocessing timm cannot read"),
        ({"mean": [0.5, 0.5]}, "preprocessing timm cannot read"),
        ({"interpolation": "hamming"}, "run: preprocessing.interpolation is 'hamming'"),
    ],
)
def test_args_that_cannot_be_followed_are_refused(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path / "run", small_model(), **args)
    (run / "map.pkl").touch()
    (run / "other.txt").write_text("ant\nbee\ndog\n")
    with pytest.raises(EdistillError, match=message):
        timm_run.load(run, context(("ant", "bee", "cat")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.getcwd []", "not the plain YAML.*os.getcwd"),
        ("a: [", "not the plain YAML"),
        ("- 1", "no key model"),
        ("lr: 1", "no key model"),
    ],
)
def test_args_that_cannot_be_read_are_refused(tmp_path: Path, text: str, message: str) -> None:
    run = write_run(tmp_path, small_model())
    (run / "args.yaml").write_text(text)
    with pytest.raises(EdistillError, match=message):
        timm_run.load(run, context())


def test_a_run_that_does_not_fit_points_to_its_args(tmp_path: Path) -> None:
    run = write_run(tmp_path, small_model(), num_classes=9)
    with pytest.raises(EdistillError, match=r"trained on 3 classes.*built for 9.*model_kwargs in .*args\.yaml"):
        timm_run.load(run, context()).build()


@pytest.mark.parametrize("given", ["gone.txt", "gone.pkl", "there.pkl", "elsewhere/gone"])
def test_the_remedy_for_a_class_map_works(tmp_path: Path, given: str) -> None:
    run = write_run(tmp_path / "run", small_model(), class_map=given)
    (run / "there.pkl").touch()
    with pytest.raises(EdistillError, match="class_map") as error:
        timm_run.load(run, context(("ant", "bee", "cat")))
    told = re.search(r"at (\S+?\.txt)( and name it in class_map)?\.$", str(error.value))
    assert told is not None
    Path(told[1]).write_text("cat\nant\nbee\n")
    if told[2]:
        args = (run / "args.yaml").read_text()
        (run / "args.yaml").write_text(args.replace(given, Path(told[1]).name))
    assert timm_run.load(run, context(("ant", "bee", "cat"))).member.class_order == (2, 0, 1)
