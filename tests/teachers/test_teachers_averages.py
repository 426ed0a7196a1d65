"""Which weights stand for a member: every way they may stand in a teachers' file, and every loader of one."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from teachers_helpers import assert_equal_outputs, context, follow, net, small_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.states import digest
from ensemble_distill.teachers.weights import read_weights

States = dict[str, Tensor]


def averaged_model(module: nn.Module, steps: int = 1) -> States:
    average = AveragedModel(module, use_buffers=True)
    for _ in range(steps):
        average.update_parameters(module)
    return dict(average.state_dict())


def under(prefix: str, state: Mapping[str, Tensor]) -> States:
    return {prefix + name: tensor for name, tensor in state.items()}


def parameters_of(module: nn.Module) -> States:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


Content = Callable[[nn.Module, nn.Module], dict[str, Any]]

# what a tool writes of a module after its last step, and of its average
WAYS: dict[str, Content] = {
    "timm with DDP": lambda last, mean: {
        "state_dict": last.state_dict(),
        "state_dict_ema": under("module.", mean.state_dict()),
        "args": argparse.Namespace(lr=0.1),
    },
    "torchvision": lambda last, mean: {"model": last.state_dict(), "model_ema": averaged_model(mean)},
    "AveragedModel around DDP": lambda last, mean: {
        "model": under("module.", last.state_dict()),
        "model_ema": {
            name.replace("module.", "module.module.", 1): tensor for name, tensor in averaged_model(mean).items()
        },
    },
    "AveragedModel beside it, under a name of one's own": lambda last, mean: {
        "model": last.state_dict(),
        "my_average": averaged_model(mean),
    },
    "a shadow by name": lambda last, mean: {
        "model": last.state_dict(),
        "ema": {"decay": 0.99, "shadow": parameters_of(mean), "backup": parameters_of(last)},
    },
    "a shadow of what is trained": lambda last, mean: {
        "model": {**mean.state_dict(), "fc.weight": last.state_dict()["fc.weight"]},
        "ema": {"decay": 0.99, "shadow": {"fc.weight": mean.state_dict()["fc.weight"]}},
    },
    "module": lambda last, mean: {"model": last.state_dict(), "ema": {"module": mean.state_dict(), "updates": 3}},
    "torch_ema": lambda last, mean: {
        "model": last.state_dict(),
        "ema": {
            "decay": 0.99,
            "num_updates": 4,
            "shadow_params": list(mean.parameters()),
            "collected_params": list(last.parameters()),
        },
    },
    "ema_pytorch": lambda last, mean: {
        "model": last.state_dict(),
        "ema": {
            "initted": torch.tensor(True),
            "step": torch.tensor([3]),
            **under("online_model.", last.state_dict()),
            **under("ema_model.", mean.state_dict()),
        },
    },
    "BasicSR": lambda last, mean: {"params": last.state_dict(), "params_ema": mean.state_dict()},
    "parameters alone": lambda last, mean: {"net": last.state_dict(), "ema_model": parameters_of(mean)},
    "mmengine": lambda last, mean: {  # exchanges them when it saves
        "meta": {"mmengine_version": "0.10"},
        "state_dict": mean.state_dict(),
        "ema_state_dict": {"steps": torch.tensor(9), **under("module.", last.state_dict())},
    },
    "Lightning's WeightAveraging": lambda last, mean: {
        "state_dict": under("model.", mean.state_dict()),
        "current_model_state": under("model.", last.state_dict()),
        "averaging_state": {"n_averaged": torch.tensor(5)},
    },
    "Lightning's StochasticWeightAveraging": lambda last, mean: {
        "state_dict": under("model.", last.state_dict()),
        "callbacks": {
            "StochasticWeightAveraging": {"n_averaged": 2, "average_model_state": under("model.", mean.state_dict())}
        },
    },
    "a callback's list": lambda last, mean: {
        "state_dict": under("model.", last.state_dict()),
        "callbacks": {"EMA": {"cur_step": 3, "ema_weights": list(mean.state_dict().values())}},
    },
    "a callback's state dict": lambda last, mean: {
        "state_dict": under("model.", last.state_dict()),
        "callbacks": {"pl.EMACallback": {"ema_state_dict": under("model.", mean.state_dict()), "ready": True}},
    },
    "a callback of parameters": lambda last, mean: {
        "state_dict": last.state_dict(),
        "callbacks": {"EMA": parameters_of(mean)},
    },
    "the average alone": lambda last, mean: {"model_ema": averaged_model(mean)},
    "the average as the file": lambda last, mean: averaged_model(mean),
}


def as_checkpoint(name: str, folder: Path, content: object) -> tuple[Path, dict[str, Any]]:
    torch.save(content, folder / name)
    return folder / name, {"model": "test_resnet", "model_kwargs": {"num_classes": 3}}


def as_timm_run(name: str, folder: Path, content: object) -> tuple[Path, dict[str, Any]]:
    (folder / "args.yaml").write_text(yaml.safe_dump({"model": "test_resnet", "num_classes": 3}))
    torch.save(content, folder / name)
    return folder, {}


def as_hf_folder(name: str, folder: Path, content: object) -> tuple[Path, dict[str, Any]]:
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(content, folder / name)
    return folder, {}


LOADERS = {
    "m.pth": as_checkpoint,
    "m.ckpt": as_checkpoint,
    "m.pth.tar": as_checkpoint,
    "model_best.pth.tar": as_timm_run,
    "last.pt": as_timm_run,
    "pytorch_model.bin": as_hf_folder,
}


def opened(path: Path, **settings: Any) -> tuple[Any, Silent]:
    told = Silent()
    asked = context(**settings)
    (teacher,) = open_teachers(path, type(asked)(asked.settings, progress=told))
    return teacher, told


@pytest.fixture(scope="module")
def modules() -> tuple[nn.Module, nn.Module]:
    """After the last step, and their average: also buffers differ, as those of an average that has its own do."""
    last, mean = small_model(0), small_model(1)
    return last, mean


@pytest.mark.parametrize(("way", "name"), list(zip(WAYS, itertools.cycle(LOADERS), strict=False)))
def test_an_average_is_what_stands_for_the_member(
    tmp_path: Path, way: str, name: str, modules: tuple[nn.Module, nn.Module]
) -> None:
    last, mean = modules
    path, settings = LOADERS[name](name, tmp_path, WAYS[way](last, mean))
    teacher, told = opened(path, **settings)
    assert teacher.origin.average
    assert (teacher.origin.file, told.warnings) == (name, [])
    built = teacher.build()
    assert_equal_outputs(built, mean)
    with torch.inference_mode():
        x = torch.randn(2, 3, 32, 32)
        assert not torch.equal(built(x), last(x)), "the test cannot tell one from the other"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (lambda a, b: {"state_dict": a, "ema": {"shadow": b}}, "ema.shadow"),
        (lambda a, b: {"state_dict": a}, "state_dict"),
        (lambda a, b: a, ""),
        (
            lambda a, b: {"state_dict": a, "callbacks": {"x.EMA": {"ema_state_dict": b}}},
            "callbacks.x.EMA.ema_state_dict",
        ),
    ],
)
def test_where_the_weights_stand_is_known(tmp_path: Path, content: Any, key: str) -> None:
    torch.save(content(net().state_dict(), net().state_dict()), tmp_path / "m.pth")
    assert read_weights(tmp_path / "m.pth").key == key


@pytest.mark.parametrize(
    ("beside", "unused"),
    [
        ({"my_favorite": net().state_dict()}, ["my_favorite"]),
        ({"best": {"weights_of_it": under("net.", net().state_dict())}}, ["best.weights_of_it"]),
        ({"model": net().state_dict()}, ["model"]),
        ({"ema": {"shadow_params": [torch.ones(3)] * 3}}, ["ema.shadow_params"]),
        ({"ema_weights": [torch.ones(2)]}, ["ema_weights"]),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(4, 5)}}}, "epoch": 3, "metric": torch.ones(2)}, []),
        ({"ema": None}, []),
        ({"original_state_dict": net().state_dict()}, []),  # the last step, put aside for an average
    ],
)
def test_what_is_not_used_is_told(tmp_path: Path, beside: dict[str, Any], unused: list[str]) -> None:
    torch.manual_seed(0)
    state = net().state_dict()
    (tmp_path / "model.py").write_text("def make():\n    ...\n")
    torch.save({"state_dict": state, **beside}, tmp_path / "m.pth")
    teacher, told = opened(tmp_path / "m.pth", model=f"{tmp_path / 'model.py'}:make")
    assert teacher.member.sha256 == digest(state)
    assert list(teacher.origin.unused) == unused
    assert len(told.warnings) == bool(unused)
    if unused:
        assert f"Used: state_dict. Not used: {unused[0]}" in told.warnings[0]


def test_the_same_weights_again_are_not_told(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save({"state_dict": state, "best": under("module.", state)}, tmp_path / "m.pth")
    assert read_weights(tmp_path / "m.pth").unused == ()


def test_an_average_that_has_not_begun_is_passed_over(tmp_path: Path) -> None:
    """It holds the weights that it was set up with, which may be random."""
    last, first = net(), net()
    average = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(0.9)).state_dict()
    for number, content in enumerate(
        (
            {"model": last.state_dict(), "model_ema": average},
            {
                "state_dict": last.state_dict(),
                "callbacks": {"SWA": {"n_averaged": 0, "average_model_state": first.state_dict()}},
            },
        )
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        weights = read_weights(tmp_path / f"{number}.pth")
        assert not weights.ema
        assert digest(weights.state) == digest(last.state_dict())


def test_averages_that_differ_are_refused_and_the_remedy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [net().state_dict() for _ in range(3)]
    content = {"state_dict": states[0], "model_ema": states[1], "callbacks": {"a.EMA": {"ema_state_dict": states[2]}}}
    torch.save({**content, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=r"several averages.*model_ema, callbacks\.a\.EMA\.ema_state_dict") as error:
        read_weights(tmp_path / "m.pth")
    follow(str(error.value), r"for instance model_ema: (.*)\. Put member", tmp_path, monkeypatch)
    assert digest(read_weights(tmp_path / "member.pth").state) == digest(states[1])
    content["callbacks"]["a.EMA"]["ema_state_dict"] = under("module.", states[1])
    torch.save(content, tmp_path / "m.pth")
    assert read_weights(tmp_path / "m.pth").key == "model_ema"


@pytest.mark.parametrize("key", ["student", "teacher", "state.model"])
def test_weights_elsewhere_are_named_and_the_remedy_works(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = net().state_dict()
    first, _, second = key.partition(".")
    torch.save({"epoch": 1, first: {second: state, "rng": [1]} if second else state}, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=rf"holds state dicts under {key}") as error:
        read_weights(tmp_path / "m.pth")
    follow(str(error.value), r"for instance \S+: (.*)\. Put member", tmp_path, monkeypatch)
    assert digest(read_weights(tmp_path / "member.pth").state) == digest(state)


# --- what stands among the tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["state_dict", ""])
def test_counters_as_ints_and_plain_notes_are_read(tmp_path: Path, place: str) -> None:
    state = net().state_dict()
    content = {**state, "1.num_batches_tracked": 0, "epoch": 3, "arch": "mlp", "best": None}
    torch.save({place: content} if place else content, tmp_path / "m.pth")
    assert digest(read_weights(tmp_path / "m.pth").state) == digest(state)


@pytest.mark.parametrize(
    ("place", "entry", "told"),
    [
        ("state_dict", {"scale.factor": 0.5}, r"scale\.factor is a float"),
        ("model_ema", {"0.extra": 3}, r"0\.extra is a int"),
        ("", {"history": [1, 2]}, "history is a list"),
        ("state_dict", {7: torch.ones(1)}, "7 is not text"),
    ],
)
def test_what_is_no_tensor_is_named_and_the_remedy_works(
    tmp_path: Path, place: str, entry: dict[Any, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = net().state_dict()
    content = {**state, **entry}
    torch.save({place: content} if place else content, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=told) as error:
        read_weights(tmp_path / "m.pth")
    follow(str(error.value), r"Save the tensors alone: (.*)\. Put member", tmp_path, monkeypatch)
    assert read_weights(tmp_path / "member.pth").state.keys() >= state.keys()


# --- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_says_where_each_members_weights_stand(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def make():\n    ...\n")
    (tmp_path / "edistill.toml").write_text('[teachers]\nmodel = "model.py:make"\n')
    (tmp_path / "teachers").mkdir()
    save_file(net().state_dict(), tmp_path / "teachers" / "a.safetensors")
    content = {"state_dict": net().state_dict(), "ema": {"shadow": net().state_dict()}, "other": net().state_dict()}
    torch.save(content, tmp_path / "teachers" / "b.pth")
    line = ["inspect", str(tmp_path / "teachers"), "-c", str(tmp_path / "edistill.toml")]
    record = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert [member["weights"] for member in record["members"]] == [
        {"file": "a.safetensors", "key": None, "average": False, "unused": []},
        {"file": "b.pth", "key": "ema.shadow", "average": True, "unused": ["other"]},
    ]
    shown = CliRunner().invoke(app, line).stdout
    assert "averaged, ema.shadow; not used: other" in shown
