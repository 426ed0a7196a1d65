"""`predict`: an exported student on arrays and images where there is no torch, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from ensemble_distill import __version__, load_student
from ensemble_distill.cli.app import app
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.seals import BLANK, ONNX_KEY, seal
from ensemble_distill.serving.kinds import open_file
from ensemble_distill.serving.served import Served
from ensemble_distill.workflows.predict import predict

COLUMNS = ["row", "class", "probability", "total_uncertainty", "data_uncertainty", "model_uncertainty"]

WITHOUT_TORCH = """
import shlex, sys
from ensemble_distill.cli.app import app
for line in sys.argv[1:]:
    assert app(shlex.split(line), standalone_mode=False) in (0, None), line
try:
    import torch
except ImportError:
    print("no torch here", file=sys.stderr)
"""


def edistill(line: str) -> Result:
    return CliRunner().invoke(app, shlex.split(line))


def refused(line: str) -> str:
    result = edistill(line)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr.replace("\n\nhint: ", " ")


@torch.no_grad()
def by_torch(folder: Path, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """What the torch student says of gray pictures (N, 8, 8)."""
    student = load_student(folder / "runs/hydra-s0", trust=True)
    x = torch.from_numpy((pixels[:, None].astype(np.float32) / 255 - 0.5) / 0.5)
    summary = student.predictive(student(x)).summary()
    return [
        {
            "class": str(int(mean.argmax())),
            "probability": float(mean.max()),
            **{f"{name}_uncertainty": float(getattr(summary, name)[row]) for name in ("total", "data", "model")},
        }
        for row, mean in enumerate(summary.mean)
    ]


def assert_predictions(found: list[dict[str, Any]], names: list[str], wanted: list[dict[str, Any]]) -> None:
    assert [list(record) for record in found] == [COLUMNS] * len(wanted)
    assert [record["row"] for record in found] == names
    assert [record["class"] for record in found] == [record["class"] for record in wanted]
    for column in COLUMNS[2:]:
        values = [float(record[column]) for record in found]
        assert_allclose(values, [record[column] for record in wanted], rtol=1e-5, atol=1e-5, err_msg=column)


@pytest.fixture
def pictures(digits: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """The first 70 test digits, more than a batch, as `some.npz` and, the first 3, as files in photos/; (70, 8, 8)."""
    monkeypatch.chdir(digits)
    pixels: NDArray[np.uint8] = np.load("data/test.npz")["x"][:70]
    np.savez("some.npz", x=pixels)
    Path("photos").mkdir()
    for index, picture in enumerate(pixels[:3]):
        Image.fromarray(picture).save(f"photos/{'cab'[index]}.png")
    return pixels


# --- without torch ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_it_predicts_where_torch_cannot_be_imported(digits: Path, pictures: NDArray[np.uint8]) -> None:
    blocked = digits / "blocked"
    blocked.mkdir()
    for name in ("torch", "torchvision", "timm"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')")
    path = os.pathsep.join([str(blocked), str(Path(__file__).parents[2])])
    lines = [
        "predict some.npz",
        "predict some.npz -m runs/hydra-s0/export/model.onnx --json -o rows.json",
        "predict photos -o folder.csv",
        "predict photos/c.png photos/b.png --format json -o files.json",
        "inspect runs/hydra-s0/export/model.onnx --json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *lines],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no torch here" in done.stderr
    wanted = by_torch(digits, pictures)
    names = [f"row {row}" for row in range(70)]
    table, brace, record = done.stdout.partition("{\n")
    assert_predictions(list(csv.DictReader(io.StringIO(table))), names, wanted)
    assert json.loads(brace + record)["kind"] == "onnx"
    assert_predictions(json.loads(Path("rows.json").read_text()), names, wanted)
    in_order = [wanted[1], wanted[2], wanted[0]]  # a.png, b.png, c.png
    folder = list(csv.DictReader(io.StringIO(Path("folder.csv").read_text())))
    assert_predictions(folder, ["a.png", "b.png", "c.png"], in_order)
    files = json.loads(Path("files.json").read_text())
    assert_predictions(files, ["photos/c.png", "photos/b.png"], [wanted[0], wanted[2]])


# --- inputs -----------------------------------------------------------------------------------------------------


def test_images_of_another_size_are_resized_as_the_members_were(digits: Path, pictures: NDArray[np.uint8]) -> None:
    Path("large").mkdir()
    large = [Image.fromarray(np.kron(picture, np.ones((3, 3), np.uint8))) for picture in pictures[:3]]
    large.append(Image.fromarray(np.pad(np.asarray(large[0]), ((0, 0), (6, 6)))))  # the center is what counts
    for index, image in enumerate(large):
        image.save(f"large/{index}.png")
    small = np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) for image in large[:3]])
    wanted = by_torch(digits, small)
    found = predict(digits / "runs/hydra-s0/export/model.onnx", ["large"]).rows
    assert_predictions(found[:3], ["0.png", "1.png", "2.png"], wanted)
    assert found[3]["class"] == found[0]["class"]


def test_color_images_are_gray_to_a_student_of_gray_arrays(digits: Path, pictures: NDArray[np.uint8]) -> None:
    color = np.stack([pictures[0], pictures[1], pictures[2]], axis=-1)
    Image.fromarray(color).save("color.png")
    np.savez("color.npz", x=color[None])
    gray = np.asarray(Image.fromarray(color).convert("L"))[None]
    model = digits / "runs/hydra-s0/export/model.onnx"
    assert_predictions(predict(model, ["color.png"]).rows, ["color.png"], by_torch(digits, gray))
    assert_predictions(predict(model, ["color.npz"]).rows, ["row 0"], by_torch(digits, gray))


def save_sealed(model: onnx.ModelProto, path: Path) -> None:
    """Write an export that says something else, as if edistill had made it so."""
    for entry in model.metadata_props:
        if entry.key == ONNX_KEY:
            entry.value = BLANK
    path.write_bytes(seal(model.SerializeToString()))


def test_class_names_are_those_of_the_file(digits: Path, pictures: NDArray[np.uint8]) -> None:
    path = digits / "runs/hydra-s0/export/model.onnx"
    model = onnx.load(path)
    names = [f"Ziffer {digit}, »{digit}«" for digit in range(10)]
    for entry in model.metadata_props:
        if entry.key == "edistill.classes":
            entry.value = json.dumps(names)
    save_sealed(model, Path("named.onnx"))
    plain = predict(path, ["photos"]).rows
    assert predict(str(path), "photos").rows == plain, "a text is a path too"
    assert [record["class"] for record in predict(Path("named.onnx"), ["photos"]).rows] == [
        names[int(record["class"])] for record in plain
    ]
    (row, *_) = csv.DictReader(io.StringIO(edistill("predict photos -m named.onnx").stdout))
    assert row["class"] == names[int(plain[0]["class"])], "commas are quoted"


def test_the_newest_export_is_taken(digits: Path, pictures: NDArray[np.uint8]) -> None:
    other = Path(shutil.copytree("runs/hydra-s0", "runs/other")) / "export/model.onnx"
    plain = edistill("predict photos -m runs/hydra-s0/export/model.onnx").stdout
    first = next(csv.DictReader(io.StringIO(plain)))["class"]
    model = onnx.load(other)
    renamed = {entry.key: entry.value.replace(f'"{first}"', '"other"') for entry in model.metadata_props}
    onnx.helper.set_model_props(model, renamed)
    save_sealed(model, other)
    os.utime(other, (0, 0))
    assert edistill("predict photos").stdout == plain
    os.utime(other)
    assert edistill("predict photos").stdout == plain.replace(f",{first},", ",other,") != plain
    shutil.rmtree("runs")
    assert "holds no exported student. Run edistill export --onnx, or pass --model FILE." in refused("predict photos")


def test_an_output_file_is_written_whole(digits: Path, pictures: NDArray[np.uint8]) -> None:
    result = edistill("predict photos -o out.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "",
        "By runs/hydra-s0/export/model.onnx, the newest export.\nout.csv is written.\n",
    )
    assert Path("out.csv").read_text() == edistill("predict photos").stdout
    assert not list(digits.glob("*.part"))


def test_a_file_that_its_user_changed_is_taken_as_the_message_says(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits)
    model = onnx.load("runs/hydra-s0/export/model.onnx")
    weights = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    halves = onnx.numpy_helper.to_array(weights).astype(np.float16).astype(np.float32)  # as quantizing does
    weights.CopyFrom(onnx.numpy_helper.from_array(halves, weights.name))
    onnx.save(model, "smaller.onnx")
    assert "pass --changed to edistill predict" in refused("predict data/test.npz -m smaller.onnx")
    result = edistill("predict data/test.npz -m smaller.onnx --changed")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1 + len(np.load("data/test.npz")["y"]))


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.fixture
def strange(pictures: NDArray[np.uint8]) -> None:
    """Inputs and models that do not fit, in the working folder."""
    np.savez("features.npz", x=np.zeros((3, 64), np.float32))
    np.savez("tensor.npz", x=np.zeros((3, 1, 8, 8), np.float32))
    np.savez("channels.npz", x=np.zeros((3, 8, 8, 2), np.uint8))
    Path("broken.png").write_bytes(b"\x89PNG, or not")
    Path("empty").mkdir()
    Path("text.onnx").write_text("not a model")
    model = onnx.load("runs/hydra-s0/export/model.onnx")
    whole = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {})
    onnx.save(model, "foreign.onnx")
    onnx.helper.set_model_props(model, {key: whole[key] for key in ("edistill.task", "edistill.version")})
    onnx.save(model, "older.onnx")


def test_what_does_not_fit_is_refused(strange: None) -> None:
    for line, told in [
        ("features.npz", "takes pixels, but the input holds features. Give rows like those it was trained on."),
        ("tensor.npz", "takes pixels, but the input holds tensor."),
        ("channels.npz", "takes inputs of shape (1, 8, 8), but row 0 is (2, 8, 8)."),
        ("broken.png", "broken.png (row 0) does not decode: "),
        ("empty", "empty holds no images."),
        ("nothing.npz", "There is no nothing.npz. Give image files"),
        ("nothing", "There is no nothing. Give image files"),
        ("photos/a.png photos/z.png", "There is no photos/z.png."),
        ("photos/a.png some.npz", "some.npz is not an image file (those end in .jpg "),
        ("photos some.npz", "photos is not an image file"),
        ("photos -m nothing.onnx", "There is no nothing.onnx. Run edistill export --onnx, or pass --model FILE."),
        ("photos -m photos", "photos holds no export/model.onnx. Run edistill export"),
        ("photos -m text.onnx", "text.onnx is not an ONNX file that onnxruntime can run: "),
        ("photos -m foreign.onnx", "foreign.onnx has no edistill metadata, so its preprocessing and classes are unk"),
        (
            "photos -m older.onnx",
            f"older.onnx was written by edistill {__version__}, without method, classes, kind, shape, ",
        ),
        ("photos -o nowhere/out.csv", "nowhere is not a folder, so out.csv cannot be written there. Make it first."),
    ]:
        assert told in refused(f"predict {line}")


def test_a_student_runs_on_the_inputs_it_names(digits_session: Path) -> None:
    served = Served(digits_session / "runs/hydra-s0/export/model.onnx")
    outputs = served.run(np.zeros((2, 1, 8, 8), np.float32))
    assert {name: values.shape for name, values in outputs.items()} == {
        "logits": (2, 10),
        "head_logits": (2, 8, 10),
        **dict.fromkeys(COLUMNS[3:], (2,)),
    }
    with pytest.raises(EdistillError, match=r"There is no .*digits"):
        open_file(digits_session)
