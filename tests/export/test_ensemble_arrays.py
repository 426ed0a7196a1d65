"""Exported ensembles of rows of several arrays: the graph takes what members take, and says what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file
from scipy.special import log_softmax, logsumexp
from several_helpers import MODEL, OF_TABLES, TOML, logits, rows, save_members, state, write_arrays, write_table
from tiny import refused

from ensemble_distill import cache_logits, export, load_settings, predict, train
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.inspect import inspect

ROWS = {"train": 30, "validation": 24, "test": 21, "calibration": 27}
RENAMED = MODEL.replace("forward(self, pixel_values, x)", "forward(self, image, ages)").replace(
    "self.seen(pixel_values.flatten(1)), self.told(x)", "self.seen(image.flatten(1)), self.told(ages)"
)


def made(folder: Path, table: bool = False) -> Settings:
    (folder / "model.py").write_text(MODEL.replace("make_body", "make_other") + RENAMED.replace("Both", "Renamed"))
    for seed, (name, count) in enumerate(ROWS.items()):
        (write_table(folder, name, count, seed) if table else write_arrays(folder / f"{name}.npz", count, seed))
    each = ('"{0}.csv"' if table else '{{ source = "{0}.npz", x = ["pixel_values", "x"] }}').format
    data = "".join(f"{name} = {each(name)}\n" for name in ROWS)
    (folder / "edistill.toml").write_text(f"{TOML}\n[data]\n{data}{OF_TABLES if table else ''}")
    return load_settings(folder, {"student.model": "model.py:make_other"})


def with_teachers(found: Settings, **said: Any) -> Settings:
    given = found.teachers.model_validate({**found.teachers.model_dump(exclude_unset=True, by_alias=True), **said})
    return found.model_copy(update={"teachers": given})


def said_by(file: Path, arrays: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert {end.name: end.shape[1:] for end in session.get_inputs()} == {
        name: list(array.shape[1:]) for name, array in arrays.items()
    }
    names = [end.name for end in session.get_outputs()]
    return dict(zip(names, session.run(None, arrays), strict=True))


def shown(pixels: Any) -> Any:
    return ((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)


def assert_pooled(found: Any, z: Any) -> None:
    assert_allclose(log_softmax(found["head_logits"], -1), log_softmax(z, -1), atol=3e-4)
    assert_allclose(found["logits"], logsumexp(log_softmax(z, -1), axis=1) - np.log(z.shape[1]), atol=3e-4)


@pytest.mark.parametrize("table", [False, True], ids=["archive", "table"])
def test_members_of_all_arrays_by_other_names(tmp_path: Path, table: bool) -> None:
    save_members(tmp_path / "teachers")
    asked = with_teachers(made(tmp_path, table), inputs={"pixel_values": "image", "x": "ages"})
    heard = Silent()
    (file,) = export(asked, ensemble=True, onnx=True, progress=heard).files
    assert not heard.warnings
    pixels, numbers, _ = rows(ROWS["test"], 2)
    z = np.stack([logits(state(seed), pixels, numbers) for seed in range(2)], axis=1)
    assert_pooled(said_by(file, {"image": shown(pixels), "ages": numbers}), z)
    said = np.exp(logsumexp(log_softmax(z, -1), axis=1)) / 2
    found = predict(file, [str(tmp_path / ("test.csv" if table else "test.npz"))], coverage=0.9)
    assert_allclose([row["probability"] for row in found.rows], said.max(1), atol=1e-4)
    assert {"abstains"} <= found.rows[0].keys(), "by the calibration rows"


@pytest.mark.parametrize("table", [False, True], ids=["archive", "table"])
def test_members_of_one_array(tmp_path: Path, table: bool) -> None:
    """The graph takes that one, by the data's name."""
    (tmp_path / "teachers").mkdir()
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(timm.create_model("test_resnet", num_classes=3).eval())
        save_file(models[-1].state_dict(), tmp_path / f"teachers/member-{seed}.safetensors")
    asked = with_teachers(made(tmp_path, table), model="test_resnet", **{"model-kwargs": {"num_classes": 3}})
    heard = Silent()
    (file,) = export(asked, ensemble=True, onnx=True, progress=heard).files
    assert not heard.warnings
    pixels, _, _ = rows(ROWS["test"], 2)
    with torch.no_grad():
        z = np.stack([model(torch.from_numpy(shown(pixels))).numpy() for model in models], axis=1)
    assert_pooled(said_by(file, {"pixel_values": shown(pixels)}), z)
    found = predict(file, [str(tmp_path / ("test.csv" if table else "test.npz"))], coverage=0.9)
    said = np.exp(logsumexp(log_softmax(z, -1), axis=1)) / 2
    assert_allclose([row["probability"] for row in found.rows], said.max(1), atol=1e-4)
    assert inspect(file)["kind"] == "onnx"


def test_members_that_name_their_arguments_otherwise_share_a_graph(tmp_path: Path) -> None:
    save_members(tmp_path / "teachers")
    (tmp_path / "teachers/member-1.safetensors").rename(tmp_path / "teachers/other-1.safetensors")
    other = {"model": f"{tmp_path}/model.py:make_teacher", "inputs": {"pixel_values": "image", "x": "ages"}}
    asked = with_teachers(made(tmp_path), model=f"{tmp_path}/model.py:make_first", members={"other-*": other})
    with (tmp_path / "model.py").open("a") as file:
        file.write(f"\n{MODEL.replace('make_teacher', 'make_first').replace('make_body', 'make_none')}")
    (exported,) = export(asked, ensemble=True, onnx=True).files
    pixels, numbers, _ = rows(ROWS["test"], 2)
    z = np.stack([logits(state(seed), pixels, numbers) for seed in range(2)], axis=1)
    assert_pooled(said_by(exported, {"pixel_values": shown(pixels), "x": numbers}), z)


def test_members_that_see_rows_otherwise_do_not(tmp_path: Path) -> None:
    save_members(tmp_path / "teachers")
    renamed = {"pixel_values": "image", "x": "ages"}
    members = {"member-1": {"preprocessing": {"mean": [0.25]}}}
    asked = with_teachers(made(tmp_path), inputs=renamed, members=members)
    with refused("member-0 and member-1", "mean of pixel_values, (0.5,) and (0.25,)"):
        export(asked, ensemble=True, onnx=True)


# --- students ---------------------------------------------------------------------------------------------------


def test_a_student_starts_from_members_that_name_their_arguments_otherwise(tmp_path: Path) -> None:
    """In a list as by its name: the same body, and so the same student."""
    save_members(tmp_path / "teachers")
    asked = with_teachers(made(tmp_path), inputs={"pixel_values": "image", "x": "ages"})
    cache_logits(asked)

    def started(name: str, init: Any) -> bytes:
        student = asked.student.model_copy(update={"model": f"{tmp_path}/body.py:make_body", "init": init})
        wanted = {"student": student, "output": asked.output.model_copy(update={"name": name})}
        few = asked.train.model_copy(update={"epochs": 1, "method": "kd"})
        return (train(asked.model_copy(update={**wanted, "train": few})).folder / "student.safetensors").read_bytes()

    (tmp_path / "body.py").write_text(
        MODEL.replace("self.last = nn.Linear(12, outputs)", "pass").replace(
            "self.last(torch.tanh(both))", "torch.tanh(both)"
        )
    )
    assert started("list", ("member-0",)) == started("one", "member-0")
    other = {"member-1": {"preprocessing": {"mean": [0.25]}}}
    asked = with_teachers(asked, members=other).model_copy(
        update={"output": asked.output.model_copy(update={"cache": str(tmp_path / "cache-2")})}
    )
    cache_logits(asked)
    with refused("starts from member-1", "mean of pixel_values is (0.25,), but its own is (0.5,)"):
        started("other", ("member-1",))
