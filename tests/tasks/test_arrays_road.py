"""The whole road of rows that are several arrays: members of several kinds, cache, student, files without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import made_once
from exported_helpers import assert_every_kind_agrees
from numpy.testing import assert_allclose
from several_helpers import MODEL, OF_TABLES, TOML, logits, rows, save_members, state, write_arrays, write_table
from text_helpers import quiet
from tiny import refused, refused_and_kept

from ensemble_distill import cache_logits, evaluate, export, load_settings, load_student, predict, train
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.facts import Preprocessing, Several
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workspace.workspace import Workspace

pytestmark = pytest.mark.thorough

ROWS = {"train": 48, "validation": 24, "test": 21}
ARRAYS = 'x = ["pixel_values", "x"]'
RENAMED = '\n[teachers.members."graph-*"]\ninputs = { pixel_values = "image", x = "ages" }\n'
FACTORY = """
from pathlib import Path
import numpy as np

class Rows:
    def __init__(self, name):
        self.file = np.load(Path(__file__).parent / f"{name}.npz")
        self.arrays = {key: self.file[key] for key in ("pixel_values", "x", "y")}
    def __len__(self):
        return len(self.arrays["y"])
    def __getitem__(self, row):
        return {key: self.arrays[key][row] for key in ("x", "pixel_values")}, self.arrays["y"][row]

def train(): return Rows("train")
def validation(): return Rows("validation")
def test(): return Rows("test")
"""


def prepared(folder: Path) -> None:
    (folder).mkdir(parents=True, exist_ok=True)
    save_members(folder / "teachers")
    (folder / "model.py").write_text(MODEL)
    (folder / "data.py").write_text(FACTORY)
    for seed, (name, count) in enumerate(ROWS.items()):
        write_arrays(folder / f"{name}.npz", count, seed)
        write_table(folder, name, count, seed)
    data = {
        "table": "".join(f'{name} = "{name}.csv"\n' for name in ROWS) + OF_TABLES,
        "archive": "".join(f'{name} = {{ source = "{name}.npz", {ARRAYS} }}\n' for name in ROWS),
        "factory": "".join(f'{name} = "data.py:{name}"\n' for name in ROWS),
    }
    for form, of in data.items():
        output = f'\n[output]\ncache = "cache-{form}"\nruns = "runs-{form}"\n'
        (folder / f"{form}.toml").write_text(f"{TOML}{output}{RENAMED}\n[data]\n{of}")


def exported(path: Path) -> None:
    """A graph of other names, which another framework could have written."""
    sys.path.insert(0, str(path.parents[1]))
    try:
        from model import make_teacher  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
        sys.modules.pop("model", None)
    module = make_teacher().eval()
    module.load_state_dict(state(7))
    batch = torch.export.Dim("batch")
    with quiet():
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, 6, 6), torch.zeros(2, 3)),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=({0: batch}, {0: batch}),
            input_names=["image", "ages"],
            output_names=["logits"],
        )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make_all(folder: Path) -> None:
        prepared(folder)
        exported(folder / "teachers/graph-0.onnx")
        cache_logits(read(folder))
        train(read(folder))
        export(read(folder), onnx=True, safetensors=True)

    return made_once(tmp_path_factory, "several", make_all)


@pytest.fixture
def folder(session: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(session, tmp_path / "several"))


def read(folder: Path, form: str = "table", **changes: Any) -> Settings:
    return load_settings(folder / f"{form}.toml", {key.replace("__", "."): value for key, value in changes.items()})


def model_of(folder: Path) -> Path:
    return folder / "runs-table/hydra-s0/export/model.onnx"


def test_the_cache_holds_what_each_member_says_of_both(session: Path) -> None:
    cache = Cache(session / "cache-table")
    assert cache.manifest.names == ("graph-0", "member-0", "member-1")
    found = cache.open("test").read(np.arange(ROWS["test"]))
    pixels, numbers, _ = rows(ROWS["test"], 2)
    for at, seed in enumerate((7, 0, 1)):
        wanted = logits(state(seed), pixels, numbers)
        said = found[:, at] - found[:, at].max(1, keepdims=True)
        assert_allclose(said, wanted - wanted.max(1, keepdims=True), atol=2e-3)  # of float16
    graph, member, _ = (one.preprocessing for one in cache.manifest.members)
    assert isinstance(graph, Several)
    assert isinstance(member, Several)
    assert (graph.fields, member.fields) == (("image", "ages"), ("pixel_values", "x"))


def test_each_form_of_data_makes_the_same_records(folder: Path) -> None:
    wanted = Cache(folder / "cache-table").open("validation").read(np.arange(ROWS["validation"]))
    for form in ("archive", "factory"):
        cache_logits(read(folder, form))
        found = Cache(folder / f"cache-{form}").open("validation").read(np.arange(ROWS["validation"]))
        assert_allclose(found, wanted, atol=1e-6)
        assert cache_logits(read(folder, form)).added == 0
        train(read(folder, form, train__epochs=2))
        export(read(folder, form), onnx=True)
        model = folder / f"runs-{form}/hydra-s0/export/model.onnx"
        by_archive = predict(model, str(folder / "test.npz"))
        assert len(by_archive.rows) == ROWS["test"]


def test_evaluation_asks_members_and_student_about_the_same_rows(folder: Path) -> None:
    found = evaluate(read(folder), "hydra-s0")
    y = rows(ROWS["test"], 2)[2]
    said = Cache(folder / "cache-table").open("test").read(np.arange(ROWS["test"])).astype(np.float64)
    p = np.exp(said - said.max(-1, keepdims=True))
    pooled = (p / p.sum(-1, keepdims=True)).mean(1)
    assert found.models["ensemble"]["nll"] == pytest.approx(-np.log(pooled[np.arange(len(y)), y]).mean(), rel=1e-3)


def test_a_graph_takes_both_by_their_names_and_says_what_torch_says(session: Path) -> None:
    graph = onnxruntime.InferenceSession(str(model_of(session)))
    assert [(port.name, port.shape[1:]) for port in graph.get_inputs()] == [("pixel_values", [3, 6, 6]), ("x", [3])]
    pixels, numbers, _ = rows(5, 11)
    seen = ((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    found = graph.run(["head_logits"], {"pixel_values": seen, "x": numbers})[0]
    student = load_student(session / "runs-table/hydra-s0", trust=True).eval()
    packed = torch.from_numpy(np.concatenate([seen.reshape(5, -1), numbers], axis=1))
    with torch.no_grad():
        assert_allclose(found, student(packed).numpy(), atol=1e-4)
    other = graph.run(["head_logits"], {"pixel_values": seen, "x": numbers + 1})[0]
    assert np.abs(other - found).max() > 1e-3  # numbers count


def test_every_kind_of_exported_file_says_the_same_of_both(folder: Path) -> None:
    assert_every_kind_agrees(read(folder), "hydra-s0", str(folder / "test.csv"))


def test_a_file_predicts_from_the_same_kind_of_table_without_torch(folder: Path) -> None:
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from ensemble_distill.workflows.predict import predict\n"
        "print(json.dumps([predict(sys.argv[1], name).rows for name in sys.argv[2:]]))"
    )
    names = [str(folder / f"test.{suffix}") for suffix in ("csv", "npz")]
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_of(folder)), *names], capture_output=True, text=True, check=True
    )
    table, archive = json.loads(done.stdout)
    assert [row["row"] for row in table] == [f"photos/test-{row}.png" for row in range(ROWS["test"])]
    for one, other in zip(table, archive, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


def test_what_is_no_row_like_those_is_refused_by_the_array(folder: Path) -> None:
    model, (pixels, numbers, _) = model_of(folder), rows(4, 5)

    def archive(**arrays: Any) -> str:
        path = folder / f"asked-{len(list(folder.glob('asked-*')))}.npz"
        np.savez(path, **arrays)
        return str(path)

    for given, words in (
        (archive(pixel_values=pixels), ("no array 'x'", "trained on it")),
        (archive(pixel_values=pixels, x=numbers[:3]), ("x has 3 rows", "pixel_values 4")),
        (archive(pixel_values=pixels, x=numbers[:, :2]), ("x of shape (3,)", "(2,)")),
        (archive(pixel_values=pixels[..., :1], x=numbers), ("pixel_values of shape (3, 6, 6)", "(1, 6, 6)")),
        (archive(pixel_values=pixels / 255, x=numbers), ("pixel_values (pixels)", "holds tensor")),
        (archive(pixel_values=pixels, x=numbers.astype(int)), ("x (features)", "holds tokens")),
        (archive(pixel_values=pixels, x=numbers * np.nan), ("x is nan",)),
        (str(folder / "photos"), ("pixel_values (pixels) and x (features)", "holds pixels")),
    ):
        with refused(*words):
            predict(model, given)
    write_table(folder, "asked", 3, age=["1", "", "2"])
    with refused("column age is '' at row 1"):
        predict(model, str(folder / "asked.csv"))
    write_table(folder, "asked", 3, photo=["photos/test-0.png", "photos/none.png", "photos/test-1.png"])
    with refused("column photo is 'photos/none.png' at row 1"):
        predict(model, str(folder / "asked.csv"))


def test_another_picture_or_number_is_not_what_the_cache_saw(folder: Path) -> None:
    path = folder / "train.csv"
    text = path.read_text()
    path.write_text(text.replace("photos/train-3.png", "photos/train-4.png"))
    with refused_and_kept(folder, "train"):
        train(read(folder), overwrite=True)
    path.write_text(text)
    (folder / "photos/train-0.png").write_bytes((folder / "photos/train-1.png").read_bytes())
    with refused_and_kept(folder, "train"):
        train(read(folder), overwrite=True)


def test_a_member_whose_forward_takes_other_names_is_refused(folder: Path) -> None:
    text = (folder / "model.py").read_text()
    swapped = text.replace("forward(self, pixel_values, x)", "forward(self, image, x)").replace(
        "pixel_values.flat", "image.flat"
    )
    (folder / "model.py").write_text(swapped)
    with refused("pixel_values, x", "forward(image, x)", "does not take pixel_values", "teachers.inputs"):
        cache_logits(read(folder), overwrite=True)
    problems = [one["told"] for one in doctor(lambda: read(folder)).checks if one["problem"]]
    assert any("forward(image, x)" in told for told in problems)
    more = text.replace("forward(self, pixel_values, x)", "forward(self, pixel_values, x, age)")
    (folder / "more.py").write_text(more)
    with refused("also wants age"):
        cache_logits(read(folder, teachers__model="more.py:make_teacher"), overwrite=True)
    renamed = {"pixel_values": "image", "x": "x"}  # and what the message says works
    found = cache_logits(read(folder, teachers__inputs=renamed), overwrite=True)
    assert found.added


def test_a_student_of_one_array_is_refused_for_rows_of_several(folder: Path) -> None:
    with refused("test_resnet", "pixel_values, x", "model.py:make_body"):
        train(read(folder, student__model="test_resnet"), overwrite=True)


def test_inputs_of_no_array_are_refused(folder: Path) -> None:
    with refused("'pixels'", "pixel_values, x"):
        cache_logits(read(folder, teachers__inputs={"pixels": "image"}), overwrite=True)
    graphs = (folder / "table.toml").read_text().replace('x = "ages" }', 'x = "numbers" }')
    (folder / "table.toml").write_text(graphs)
    with refused("graph-0 takes image, ages", "image, numbers", "inputs = { pixel_values = "):
        cache_logits(read(folder), overwrite=True)


def test_members_of_one_array_each_join_them(folder: Path) -> None:
    """A network of pictures alone, called with one tensor, beside members of both; the student still takes both."""
    graph = onnx.load(folder / "teachers/graph-0.onnx")
    cut = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node("Flatten", ["data"], ["flat"]),
                onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            ],
            "pictures",
            [onnx.helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["N", 3, 6, 6])],
            [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 3])],
            [onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(108, 3)).astype(np.float32), "w")],
        ),
        opset_imports=graph.opset_import[:1],
        ir_version=graph.ir_version,
    )
    onnx.save(cut, folder / "teachers/pictures.onnx")
    assert cache_logits(read(folder)).added
    members = {one.name: one.preprocessing for one in Manifest.load(folder / "cache-table").members}
    assert isinstance(members["pictures"], Preprocessing)
    train(read(folder, train__epochs=2), overwrite=True)
    made = load_student(folder / "runs-table/hydra-s0", trust=True)
    assert made.heads.count == 4


def test_students_start_from_members_of_both(folder: Path) -> None:
    """One body that is a member, and all of them compressed."""
    (folder / "teachers/graph-0.onnx").unlink()
    text = (folder / "table.toml").read_text()
    (folder / "table.toml").write_text(text.replace(RENAMED, ""))
    (folder / "model.py").write_text((folder / "model.py").read_text().replace("Both(10)", "Body()") + BODY)
    cache_logits(read(folder), overwrite=True)
    for init in ("member-0", ["member-*"]):
        changes: dict[str, Any] = {"student__compress": 0.7} if isinstance(init, list) else {}
        train(read(folder, student__init=init, train__epochs=2, **changes), overwrite=True)
        export(read(folder), onnx=True)


BODY = """
class Body(Both):
    def __init__(self):
        super().__init__(3)
        self.last = nn.Identity()
"""


def test_a_distilled_student_is_a_member_again(folder: Path) -> None:
    shutil.rmtree(folder / "teachers")
    shutil.copytree(folder / "runs-table/hydra-s0", folder / "teachers/first")
    text = (folder / "table.toml").read_text()
    (folder / "table.toml").write_text(text.replace(RENAMED, ""))
    cache_logits(read(folder), overwrite=True)
    (member,) = Manifest.load(folder / "cache-table").members
    assert isinstance(member.preprocessing, Several)


def test_the_ensemble_itself_is_a_graph_of_both(folder: Path) -> None:
    (folder / "teachers/graph-0.onnx").unlink()
    (folder / "table.toml").write_text((folder / "table.toml").read_text().replace(RENAMED, ""))
    (path,) = export(read(folder), onnx=True, ensemble=True).files
    pixels, numbers, _ = rows(4, 3)
    seen = ((pixels / np.float32(255) - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    found = onnxruntime.InferenceSession(str(path)).run(["head_logits"], {"pixel_values": seen, "x": numbers})[0]
    for member in (0, 1):
        wanted = logits(state(member), pixels, numbers)
        said = found[:, member]
        assert_allclose(said - said.max(1, keepdims=True), wanted - wanted.max(1, keepdims=True), atol=1e-4)


def test_doctor_and_inspect_tell_of_both(folder: Path) -> None:
    found = doctor(lambda: read(folder))
    told = {one["what"]: one["told"] for one in found.checks}
    assert not [one for one in found.checks if one["problem"]]
    assert "pixel_values (pixels) and x (features 3)" in told["data.train"]
    assert "pixel_values [3, 6, 6], x [3]" in told["student.model"]
    about = inspect(model_of(folder))
    assert about["input"]["names"] == ["pixel_values", "x"]


def test_rows_are_seen_as_the_members_saw_them(session: Path) -> None:
    workspace = Workspace(read(session))
    (_, member, _) = Manifest.load(session / "cache-table").members
    x = plain_inputs(workspace.source("test"), [0, 1], member.preprocessing)
    pixels, numbers, _ = rows(ROWS["test"], 2)
    assert_allclose(x[:, 108:], numbers[:2], atol=1e-6)
    assert_allclose(x[:, :108], ((pixels[:2] / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).reshape(2, -1), atol=1e-5)
