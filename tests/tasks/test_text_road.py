"""The whole road of texts: members of several tokenizers and kinds, cache, students, figures, files without torch."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import made_once
from exported_helpers import assert_every_kind_agrees
from safetensors.torch import save_file
from text_helpers import CLASSES, LENGTH, a_text_folder, bert, needs_transformers, quiet, texts, tokenizer, write_table

from ensemble_distill import cache_logits, evaluate, export, load_settings, load_student, predict, train
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.replay import check_samples
from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Tokenization
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workspace.workspace import Workspace

needs_transformers()
pytestmark = pytest.mark.thorough

ROWS = {"train": 60, "validation": 24, "test": 24}
MODEL = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self, tokens, outputs):
        super().__init__()
        self.embedding, self.last = nn.Embedding(tokens, 16), nn.Linear(16, outputs)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.last((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))

def make_teacher(tokens=40):
    return Bag(tokens, 3)

def make_body(tokens=40):
    return Bag(tokens, 12)

class Padded(Bag):
    def forward(self, input_ids, attention_mask):
        return self.last(self.embedding(input_ids).mean(1))

def make_padded(tokens=40):
    return Padded(tokens, 12)
"""
TOML = """
[teachers]
path = "teachers"
model = "model.py:make_teacher"

[teachers.members."ready-*"]
preprocessing = { tokenizer = "tokenizer.json", length = 10 }

[data]
train = "train.csv"
validation = "validation.csv"
test = "test.csv"
ood = { others = "others.txt" }
columns = { text = "text", labels = ["label"], classes = ["cat", "dog", "owl"] }

[views]
transform = "token-dropout"
count = 2

[student]
model = "model.py:make_body"

[train]
epochs = 8
device = "cpu"
workers = 0
"""


def make(folder: Path) -> None:
    """Two folders of transformers, of tokenizers of their own, a module and a graph."""
    (folder / "teachers").mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "edistill.toml").write_text(TOML)
    for seed, (name, rows) in enumerate(ROWS.items()):
        write_table(folder / f"{name}.csv", rows, seed)
    (folder / "others.txt").write_text("\n".join(["ships sail far", *texts(9, 9)[0]]) + "\n")
    a_text_folder(folder / "teachers/bert-0", 0)
    a_text_folder(folder / "teachers/bert-1", 1, extra=("one", "two", "three"))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    torch.manual_seed(2)
    state = {"embedding.weight": torch.randn(40, 16), "last.weight": torch.randn(3, 16), "last.bias": torch.zeros(3)}
    save_file(state, folder / "teachers/ready-module.safetensors")
    exported(folder / "teachers/ready-graph.onnx", tokenizer().get_vocab_size())


def exported(path: Path, tokens: int) -> None:
    """As Hugging Face's tools export: inputs by their names, in their own order, of any number of rows and tokens."""
    from torch import Tensor, nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = bert(tokens, 3)

        def forward(self, attention_mask: Tensor, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=16)}
    given = (torch.ones(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
    with quiet():
        torch.onnx.export(
            Named().eval(),
            given,
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=(axes, axes),
            input_names=["attention_mask", "input_ids"],
            output_names=["logits"],
        )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make_all(folder: Path) -> None:
        make(folder)
        cache_logits(read(folder))
        train(read(folder))
        export(read(folder), onnx=True)

    return made_once(tmp_path_factory, "texts", make_all)


@pytest.fixture
def folder(session: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(session, tmp_path / "texts"))


def read(folder: Path, **changes: Any) -> Settings:
    return load_settings(folder / "edistill.toml", {key.replace("__", "."): value for key, value in changes.items()})


def test_every_kind_of_exported_file_says_the_same_of_texts(folder: Path) -> None:
    assert_every_kind_agrees(read(folder), "hydra-s0", str(folder / "test.csv"))


def test_each_member_is_asked_with_its_own_tokenizer(session: Path) -> None:
    manifest = Manifest.load(session / "cache")
    encodings = [member.preprocessing for member in manifest.members]
    assert manifest.names == ("bert-0", "bert-1", "ready-graph", "ready-module")
    assert all(isinstance(to, Tokenization) and to.tokenizer.content is not None for to in encodings)
    assert [to.length for to in encodings if isinstance(to, Tokenization)] == [LENGTH, LENGTH, 10, 10]
    assert encodings[0] != encodings[1]
    assert encodings[2] == encodings[3]
    document = json.loads((session / "cache/manifest.json").read_text())
    assert len(document["tokenizers"]) == 2 + (encodings[0].tokenizer != encodings[2].tokenizer)  # type: ignore[union-attr]
    assert {split.kind for split in manifest.splits.values()} == {"text"}
    told = inspect(session / "cache", read(session))
    assert "content" not in json.dumps(told)


def test_evaluation_asks_the_members_and_times_them(session: Path) -> None:
    found = evaluate(read(session), "hydra-s0")
    assert 0 < found.models["student"]["accuracy"] < 1
    assert found.ood["others"]["ensemble"]["model_uncertainty"] >= 0


def test_the_file_says_what_the_student_does_and_needs_no_torch(session: Path, folder: Path) -> None:
    student, config = load_student(session / "runs/hydra-s0", trust=True), session / "runs/hydra-s0/config.json"
    record = json.loads(config.read_text())
    assert record["input"]["kind"] == "text"
    assert record["input"]["preprocessing"]["length"] == LENGTH
    source = Workspace(read(session)).source("test")
    to = Manifest.load(session / "cache").members[0].preprocessing
    x = torch.from_numpy(plain_inputs(source, range(len(source)), to))
    with torch.no_grad():
        wanted = student.predictive(student(x)).summary()
    model = folder / "runs/hydra-s0/export/model.onnx"
    graph = onnxruntime.InferenceSession(model)
    assert [(i.name, i.shape) for i in graph.get_inputs()] == [
        ("input_ids", ["batch_size", "length"]),
        ("attention_mask", ["batch_size", "length"]),
    ]
    alone = folder / "alone"
    alone.mkdir()
    shutil.copy(model, alone / "m.onnx")
    shutil.copy(folder / "test.csv", alone)
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'transformers', 'torchvision'): sys.modules[name] = None\n"
        "from ensemble_distill import predict\n"
        "predict('m.onnx', 'test.csv', output='p.csv')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=alone, check=True)
    with (alone / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(row["total_uncertainty"]) for row in rows], wanted.total, atol=1e-4)
    assert [row["class"] for row in rows] == [CLASSES[k] for k in wanted.mean.argmax(1)]


def test_predict_takes_lines_and_refuses_other_rows(folder: Path) -> None:
    model = folder / "runs/hydra-s0/export/model.onnx"
    rows = predict(model, str(folder / "others.txt")).rows
    assert len(rows) == 10
    assert {row["class"] for row in rows} <= set(CLASSES)
    (folder / "other.csv").write_text("txt\na cat\n")
    with pytest.raises(EdistillError, match=r"(?s)'text'.*'txt'.*trained on it"):
        predict(model, str(folder / "other.csv"))
    np.savez(folder / "x.npz", x=np.zeros((2, 3), np.float32))
    with pytest.raises(EdistillError, match="takes text, but the input holds features"):
        predict(model, str(folder / "x.npz"))


def test_padding_changes_no_prediction(session: Path) -> None:
    """A batch is padded to its longest row: alone, a text is given to the graph without any."""
    model, few = session / "runs/hydra-s0/export/model.onnx", session / "few.txt"
    lines = ["a cat", " ".join(["the dog digs"] * 5), "owls"]
    together = _predicted(model, few, lines)
    alone = [row for line in lines for row in _predicted(model, few, [line])]
    for one, other in zip(together, alone, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def _predicted(model: Path, file: Path, lines: list[str]) -> list[Any]:
    file.write_text("\n".join(lines) + "\n")
    return list(predict(model, str(file)).rows)


def test_another_text_or_tokenizer_is_not_what_the_cache_saw(folder: Path) -> None:
    plan = Workspace(read(folder)).split("train")
    check_samples(folder / "cache", "train", plan.rows(), plan.count)
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join([lines[0], "a changed text,cat", *lines[2:]]) + "\n")
    changed = Workspace(read(folder)).split("train")
    with pytest.raises(EdistillError, match=r"View 0 of row 0 of train differs"):
        check_samples(folder / "cache", "train", changed.rows(), changed.count)
    with pytest.raises(EdistillError, match="holds outputs for train data"):
        train(read(folder), overwrite=True)
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer().to_str().replace('"cat"', '"cot"'))
    with pytest.raises(EdistillError, match=r"(?s)member ready-graph with preprocessing"):
        cache_logits(read(folder))


def test_a_student_may_be_one_of_transformers_and_start_from_a_member(folder: Path) -> None:
    tokens = tokenizer().get_vocab_size()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    kwargs = {"vocab_size": tokens, "max_position_embeddings": 16, **sizes}
    asked = {"student.model": "transformers/bert", "student.kwargs": kwargs, "train.epochs": 2}
    settings = load_settings(folder / "edistill.toml", {**asked, "student.init": "bert-0", "output.name": "started"})
    train(settings)
    found = load_student(folder / "runs/started")
    assert "body.bert.embeddings.word_embeddings.weight" in found.state_dict()
    export(settings, "started", onnx=True)
    rows = predict(folder / "runs/started/export/model.onnx", str(folder / "test.csv")).rows
    assert len(rows) == ROWS["test"]
    other = load_settings(folder / "edistill.toml", {**asked, "student.init": "ready-module", "output.name": "no"})
    with pytest.raises(EdistillError, match=r"student\.init is 'ready-module'.*absent"):
        train(other)


def test_compressed_members_of_one_tokenizer_are_a_start(folder: Path) -> None:
    tokens = tokenizer().get_vocab_size()
    shutil.rmtree(folder / "cache")
    for name in ("bert-1", "ready-module.safetensors", "ready-graph.onnx"):
        path = folder / "teachers" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    toml = (folder / "edistill.toml").read_text()
    (folder / "edistill.toml").write_text(
        toml.replace('[teachers.members."ready-*"]\n', "")
        .replace('preprocessing = { tokenizer = "tokenizer.json", length = 10 }\n', "")
        .replace('model = "model.py:make_teacher"\n', "")
    )
    for name, seed in (("bert-0", 0), ("bert-2", 5)):
        shutil.rmtree(folder / "teachers" / name, ignore_errors=True)
        a_text_folder(folder / "teachers" / name, seed, initializer_range=0.1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    kwargs = {"vocab_size": tokens, "max_position_embeddings": 16, **sizes}
    asked = {"student.model": "transformers/bert", "student.kwargs": kwargs, "train.epochs": 2}
    settings = load_settings(
        folder / "edistill.toml", {**asked, "student.init": ["bert-*"], "student.compress": 0.6, "output.name": "thin"}
    )
    cache_logits(settings)
    train(settings)
    export(settings, "thin", onnx=True)
    assert len(predict(folder / "runs/thin/export/model.onnx", str(folder / "test.csv")).rows) == ROWS["test"]


def test_what_does_not_go_with_texts_is_refused_by_name(folder: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        settings = load_settings(folder / "edistill.toml", {"output.name": "no", **changes})
        with pytest.raises(EdistillError, match=match):
            train(settings)

    refused(
        r"student\.heads is a last stage, and rows are several arrays, input_ids", **{"student.heads": "last-stage"}
    )
    refused(r"student\.preprocessing has size", **{"student.preprocessing": {"size": [4, 4]}})
    refused(r"(?s)make_padded.*not a function of its row", **{"student.model": str(folder / "model.py:make_padded")})
    refused(r"starts from bert-1, whose tokenizer is", **{"student.init": ["bert-*"]})
    refused(r"timm image model", **{"student.model": "resnet18"})
    refused(r"no such classifier.*transformers/bert", **{"student.model": "transformers/bertt"})


def test_a_body_of_fewer_tokens_than_its_tokenizer_is_refused_before_a_step(folder: Path) -> None:
    count = tokenizer().get_vocab_size()
    with pytest.raises(EdistillError, match=rf"make_body.*\b{count - 1}\b.*\b{count}\b.*student\.kwargs"):
        train(read(folder, student__kwargs={"tokens": count - 1}, output__runs=str(folder / "other")))
    assert not list((folder / "other").glob("*/student.safetensors"))


def test_the_student_s_own_tokenizer_is_the_one_that_is_set(folder: Path) -> None:
    preprocessing = {"tokenizer": str(folder / "tokenizer.json"), "length": 6}
    settings = load_settings(
        folder / "edistill.toml",
        {"student.preprocessing": preprocessing, "output.name": "short", "train.epochs": 2},
    )
    train(settings)
    record = json.loads((folder / "runs/short/config.json").read_text())
    assert record["input"]["shape"] == [2, 6]
    assert list(record["tokenizers"]).count(record["input"]["preprocessing"]["tokenizer"]["sha256"]) == 1


def test_the_ensemble_is_one_graph_where_all_cut_texts_alike(folder: Path) -> None:
    with pytest.raises(EdistillError, match="Member ready-graph is not a network of torch"):
        export(read(folder), ensemble=True, onnx=True)
    for path in (folder / "teachers").glob("ready-*"):
        path.unlink()
    toml = (folder / "edistill.toml").read_text()
    (folder / "edistill.toml").write_text(toml[: toml.index("model =")] + toml[toml.index("[data]") :])
    with pytest.raises(EdistillError, match=r"(?s)Members bert-0 and bert-1 .* tokenizer"):
        export(read(folder), ensemble=True, onnx=True)
    shutil.rmtree(folder / "teachers/bert-1")
    a_text_folder(folder / "teachers/bert-2", 5)
    shutil.rmtree(folder / "cache")
    report = export(read(folder), ensemble=True, onnx=True)
    (model,) = [path for path in report.files if str(path).endswith(".onnx")]
    rows = predict(model, str(folder / "test.csv")).rows
    assert len(rows) == ROWS["test"]
    assert max(row["model_uncertainty"] for row in rows) > 0.01
