"""Teachers' files that claim too much, nest too deeply, vanish or hold what does not belong: one message each."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from teachers_helpers import assert_equal_outputs, context, net, small_model
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.teachers import checkpoint, hf_folder, open_teachers, timm_run
from ensemble_distill.teachers.said import yaml_said
from ensemble_distill.teachers.states import refuse_unreadable
from ensemble_distill.teachers.weights import read_weights

TRILLION = 10**12

# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "end"), [([TRILLION], 4 * TRILLION), ([TRILLION], 16), ([2**62, 2**62], 16), ([4], 16 * TRILLION)]
)
def test_safetensors_that_claim_too_much(tmp_path: Path, shape: list[int], end: int) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(EdistillError, match=r"m\.safetensors is not a checkpoint that can be read"):
        read_weights(tmp_path / "m.safetensors")


def test_a_header_of_safetensors_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", TRILLION) + b"{}")
    with pytest.raises(EdistillError, match="not a checkpoint that can be read"):
        read_weights(tmp_path / "m.safetensors")


def claiming(file: Path, zipped: bool, what: str, count: int) -> None:
    """A file of torch.save whose storage, tensor or both claim that many elements instead of 13."""
    import zipfile

    torch.save({"w": torch.arange(13.0)}, file, _use_new_zipfile_serialization=zipped)
    large = b"\x8a\x08" + struct.pack("<q", count)

    def change(pickled: bytes) -> bytes:
        start = pickled.index(b"FloatStorage")
        storage, size = [start + found.start() for found in re.finditer(b"K\x0d", pickled[start:])][:2]
        for at in [size] * (what != "storage") + [storage] * (what != "size"):
            pickled = pickled[:at] + large + pickled[at + 2 :]
        return pickled

    if not zipped:
        file.write_bytes(change(file.read_bytes()))
        return
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickles_that_claim_too_much(tmp_path: Path, zipped: bool) -> None:
    for what, count, trust in itertools.product(("storage", "size", "both"), (1000, TRILLION), (False, True)):
        claiming(tmp_path / "m.pth", zipped, what, count)
        with pytest.raises(EdistillError, match=r"m\.pth is not a checkpoint that can be read"):
            read_weights(tmp_path / "m.pth", trust)


@pytest.mark.parametrize("place", ["", "state_dict", "model_ema", "best"])
def test_one_number_that_claims_to_be_a_trillion(tmp_path: Path, place: str) -> None:
    vast = {"w": torch.zeros(1).expand(TRILLION)}
    plain = {} if place in ("", "state_dict") else {"state_dict": vast}
    torch.save({place: vast, **plain} if place else vast, tmp_path / "m.pth")
    with pytest.raises(EdistillError, match=r"its tensors claim 4,000,000,000,000"):
        read_weights(tmp_path / "m.pth")


def test_a_view_of_few_numbers_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1000)}, tmp_path / "m.pth")
    assert read_weights(tmp_path / "m.pth").state["w"].shape == (1000,)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantized_tensor_is_called_that(tmp_path: Path) -> None:
    quantized: Tensor = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)
    (tmp_path / "m.pth").touch()
    with pytest.raises(EdistillError, match="w is quantized"):
        refuse_unreadable(tmp_path / "m.pth", {"w": quantized})


# --- texts ------------------------------------------------------------------------------------------------------


def a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "args.yaml").write_text(yaml.safe_dump({"model": "test_resnet", "num_classes": 3}))
    save_file(small_model().state_dict(), folder / "last.safetensors")
    return folder


def an_hf_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"mean": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(small_model().state_dict(), folder / "model.safetensors")
    return folder


def a_timm_run_with(folder: Path, kwargs: dict[str, Any]) -> Any:
    (a_run(folder) / "args.yaml").write_text(
        yaml.safe_dump({"model": "test_resnet", "num_classes": 3, "model_kwargs": kwargs})
    )
    return timm_run.load(folder, context())


def an_hf_folder_with(folder: Path, kwargs: dict[str, Any]) -> Any:
    config = json.loads((an_hf_folder(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_args": kwargs}))
    return hf_folder.load(folder, context())


def a_checkpoint_with(folder: Path, kwargs: dict[str, Any]) -> Any:
    return checkpoint.load(a_run(folder) / "last.safetensors", context(model="test_resnet", **{"model-kwargs": kwargs}))


@pytest.mark.parametrize("make", [a_timm_run_with, an_hf_folder_with, a_checkpoint_with])
def test_weights_that_a_models_arguments_name_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]
) -> None:
    """timm would fetch the one, and unpickle the other: in some versions with all the code in it."""
    asked: list[str] = []
    monkeypatch.setattr(timm.models._factory, "load_checkpoint", lambda model, path, **_: asked.append(path))
    for key, value in (("pretrained", True), ("checkpoint_path", str(tmp_path / "evil.pth"))):
        assert_equal_outputs(make(tmp_path / key, {key: value}).build(), small_model())
        assert asked == [], key


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: " + "[" * 1500, "nested too deeply"),
        ("model: resnet18\n" + LAUGHS, "more than 1,000,000 entries"),
        ("model: resnet18\n" + MERGES, "more than 1,000,000 entries"),
        ("model: resnet18\na: &a [*a]\n", "more than 1,000,000 entries"),
        ("model: !!python/object:os.system ls", "could not determine a constructor"),
        ("model: resnet18\nn: " + "9" * 5000, "not the plain YAML"),
        ("? {[]: 1}\n: 2", "not the plain YAML"),
        ("model: \x00", "not the plain YAML"),
    ],
)
def test_yaml_that_is_no_list_of_arguments(tmp_path: Path, text: str, told: str) -> None:
    run = a_run(tmp_path / "run")
    (run / "args.yaml").write_text(text)
    with pytest.raises(EdistillError, match=told) as error:
        open_teachers(run, context())
    assert len(str(error.value)) < 1000


def test_anchors_as_yaml_itself_writes_them_are_read(tmp_path: Path) -> None:
    shared = [0.5, 0.5, 0.5]
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({"mean": shared, "std": shared}))
    assert "&id001" in (tmp_path / "args.yaml").read_text()
    assert yaml_said(tmp_path / "args.yaml") == {"mean": shared, "std": shared}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{", '{"num_classes": ' + "9" * 5000 + "}"])
def test_json_that_is_no_config(tmp_path: Path, text: str) -> None:
    folder = an_hf_folder(tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(EdistillError, match=r"config\.json is not valid JSON"):
        open_teachers(folder, context())


ODD: list[Any] = [True, -1, 0.5, "x", [], [1], {}, {"a": [1]}, [None], 10**15]
RUN_KEYS = ("model", "num_classes", "in_chans", "gp", "bn_eps", "input_size", "img_size", "mean", "std", "crop_pct")
RUN_KEYS += ("interpolation", "class_map", "dataset", "model_kwargs", "crop_mode")
HF_KEYS = ("architecture", "num_classes", "model_args", "pretrained_cfg", "label_names", "global_pool")


def is_followed(path: Path) -> bool:
    """Else it is refused in words of its own: nothing but these may be raised."""
    try:
        (teacher,) = open_teachers(path, context(("a", "b", "c")))
        teacher.build()
    except EdistillError as error:
        assert len(str(error)) > 20  # noqa: PT017
        return False
    return True


@pytest.mark.thorough
def test_arguments_of_every_type_are_followed_or_refused(tmp_path: Path) -> None:
    run, followed = a_run(tmp_path / "run"), set[bool]()
    for key, value in itertools.product(RUN_KEYS, ODD):
        (run / "args.yaml").write_text(yaml.safe_dump({"model": "test_resnet", "num_classes": 3, key: value}))
        followed.add(is_followed(run))
    assert followed == {True, False}


@pytest.mark.thorough
def test_configs_of_every_type_are_followed_or_refused(tmp_path: Path) -> None:
    folder = an_hf_folder(tmp_path / "m")
    config, followed = json.loads((folder / "config.json").read_text()), set[bool]()
    for key, value in itertools.product(HF_KEYS, ODD):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        followed.add(is_followed(folder))
    assert followed == {True, False}


@pytest.mark.thorough
def test_pretrained_configs_of_every_type_are_followed_or_refused(tmp_path: Path) -> None:
    folder = an_hf_folder(tmp_path / "m")
    config, followed = json.loads((folder / "config.json").read_text()), set[bool]()
    keys = ("mean", "std", "input_size", "crop_pct", "interpolation", "crop_mode", "label_names")
    for key, value in itertools.product(keys, ODD):
        config["pretrained_cfg"] = {"mean": [0.5] * 3, key: value}
        (folder / "config.json").write_text(json.dumps(config))
        followed.add(is_followed(folder))
    assert followed == {True, False}


# --- what disappears --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "weights", "text"])
@pytest.mark.parametrize("kind", [timm_run, hf_folder], ids=lambda kind: kind.__name__.rpartition(".")[2])
def test_what_disappears_after_it_was_listed(tmp_path: Path, kind: Any, what: str) -> None:
    member = (a_run if kind is timm_run else an_hf_folder)(tmp_path / "m")
    assert kind.claims(member)
    for file in member.iterdir() if what != "folder" else ():
        if (file.suffix == ".safetensors") == (what == "weights"):
            file.unlink()
    if what == "folder":
        shutil.rmtree(member)
    with pytest.raises(EdistillError, match=r"cannot be read|has changed since it was listed"):
        kind.load(member, context())


def test_a_checkpoint_that_disappears(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def make():\n    ...\n")
    save_file(net().state_dict(), tmp_path / "m.safetensors")
    settings = context(model=f"{tmp_path / 'model.py'}:make")
    teacher = checkpoint.load(tmp_path / "m.safetensors", settings)
    (tmp_path / "m.safetensors").unlink()
    for again in (lambda: checkpoint.load(tmp_path / "m.safetensors", settings), teacher.build):
        with pytest.raises(EdistillError, match="cannot be read: No such file"):
            again()
