"""Each kind of checkpoint: what it claims, what it makes of the files, what it refuses."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.utils.misc import natural_key
from torch import Tensor, nn

from ensemble_distill.config import TeacherSettings
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.teachers import checkpoint, fit, hf_folder, timm_run
from ensemble_distill.teachers.teacher import Context
from ensemble_distill.teachers.weights import digest

SMALL = {"size": [32, 32], "mean": [0.5], "std": [0.25]}


def context(classes: tuple[str, ...] | None = None, **settings: Any) -> Context:
    return Context(TeacherSettings.model_validate(settings, context={"root": Path.cwd()}), classes)


def small_model(seed: int = 0, name: str = "test_resnet", **kwargs: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 3, **kwargs}).eval()


def assert_equal_outputs(built: nn.Module, original: nn.Module, shape: tuple[int, ...] = (2, 3, 32, 32)) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert not built.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in built.parameters())
    with torch.inference_mode():
        assert torch.equal(built(x), original(x))


# --- fit ----------------------------------------------------------------------------------------------------


def lowered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}


def net(width: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def test_weights_of_another_precision_become_the_modules() -> None:
    module, state = net(), lowered(net().state_dict())
    fit.load_weights(module, state, "m")
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())


def test_weights_saved_before_batchnorm_counted_are_accepted() -> None:
    state = {key: value for key, value in net().state_dict().items() if "num_batches" not in key}
    fit.load_weights(net(), state, "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"missing from the checkpoint: 0\.bias\. Check"),
        (lambda s: s.update(extra=torch.ones(1)), r"not in the module: extra\. Check"),
        (lambda s: s.update({f"x{i}": torch.ones(1) for i in range(5)}), "x0, x1, x2 and 2 more"),
        (
            lambda s: (s.pop("0.bias"), s.update({"0.weight": torch.ones(2, 2)})),
            r"missing from the checkpoint: 0\.bias; of another shape: 0\.weight is \(2, 2\) in the checkpoint, "
            r"\(4, 5\) in the module",
        ),
        (lambda s: s.update(net(width=6).state_dict()), "of another shape.*and 4 more"),
    ],
)
def test_a_misfit_is_told_by_its_keys(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    state = dict(net().state_dict())
    change(state)
    with pytest.raises(EdistillError, match=rf"(?s)member-1 does not fit its module.*{message}") as error:
        fit.load_weights(net(), state, "member-1")
    assert "teachers.model-kwargs" in str(error.value)


def test_a_misfit_in_the_classes_alone_is_called_that() -> None:
    with pytest.raises(EdistillError, match=r"trained on 7 classes, but its module is built for 3.*num_classes to 7"):
        fit.load_weights(net(), net(classes=7).state_dict(), "m")


# --- bare checkpoints ---------------------------------------------------------------------------------------

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
        ({"model": "test_resnet", "preprocessing": {"crop_pct": 2.0}}, "a: preprocessing.crop-pct is 2.0"),
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


# --- timm run folders ---------------------------------------------------------------------------------------


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


# --- Hugging Face folders -----------------------------------------------------------------------------------


def write_hf(folder: Path, model: nn.Module, **config: Any) -> Path:
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


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
    teacher = hf_folder.load(write_hf(tmp_path, original), context())
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
    edit(folder, lambda c: (c.update(c.pop("pretrained_cfg")), c.update(labels=["c", "a", "b"])))
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
