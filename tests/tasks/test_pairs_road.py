"""The whole road of pairs of texts: members with tokenizers of their own, a student, and a file without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import made_once
from safetensors.torch import save_file
from text_helpers import LENGTH, a_text_folder, needs_transformers, texts, tokenizer
from tiny import refused

from ensemble_distill import cache_logits, evaluate, export, load_settings, predict, train
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.facts import FIELDS, Tokenization
from ensemble_distill.settings import Settings

needs_transformers()
pytestmark = pytest.mark.thorough

ROWS = {"train": 48, "validation": 18, "test": 18}
MODEL = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embedding, self.last = nn.Embedding(40, 16), nn.Linear(32, outputs)

    def forward(self, input_ids, attention_mask, token_type_ids):
        words = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        second = token_type_ids.unsqueeze(-1)
        return self.last(torch.cat([(words * (1 - second)).sum(1), (words * second).sum(1)], 1))

class Blind(Bag):
    def forward(self, input_ids, attention_mask):
        return self.last(self.embedding(input_ids).mean(1).repeat(1, 2))

def make_teacher():
    return Bag(3)

def make_body():
    return Bag(12)

def make_blind():
    return Blind(3)
"""
TOML = f"""
[teachers]
path = "teachers"
model = "model.py:make_teacher"
[teachers.members."ready-*"]
preprocessing = {{ tokenizer = "tokenizer.json", length = {LENGTH} }}
[data]
train = "train.csv"
validation = "validation.csv"
test = "test.csv"
columns = {{ text = ["premise", "hypothesis"], labels = ["label"], classes = ["cat", "dog", "owl"] }}
[views]
transform = "token-dropout"
count = 2
[student]
model = "model.py:make_body"
preprocessing = {{ tokenizer = "tokenizer.json", length = {LENGTH} }}
[train]
epochs = 6
device = "cpu"
workers = 0
"""


def write_pairs(path: Path, count: int, seed: int) -> None:
    one, labels = texts(count, seed)
    other, _ = texts(count, seed + 100)
    lines = [f"{label},{b},{a}" for a, b, label in zip(one, other, labels, strict=True)]
    path.write_text("\n".join(["label,hypothesis,premise", *lines]) + "\n")


def read(folder: Path, **changes: Any) -> Settings:
    return load_settings(folder / "edistill.toml", {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make_all(folder: Path) -> None:
        (folder / "teachers").mkdir(parents=True)
        (folder / "model.py").write_text(MODEL)
        (folder / "edistill.toml").write_text(TOML)
        (folder / "tokenizer.json").write_text(tokenizer().to_str())
        for seed, (name, rows) in enumerate(ROWS.items()):
            write_pairs(folder / f"{name}.csv", rows, seed)
        a_text_folder(folder / "teachers/bert-0", 0, extra=("one", "two"))
        a_text_folder(folder / "teachers/bert-1", 1)
        config = folder / "teachers/bert-1/tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_input_names": list(FIELDS)}))
        torch.manual_seed(1)
        weights = {"embedding.weight": torch.randn(40, 16), "last.weight": torch.randn(3, 32) / 8}
        save_file(weights | {"last.bias": torch.zeros(3)}, folder / "teachers/ready-0.safetensors")
        cache_logits(read(folder))
        train(read(folder))
        export(read(folder), onnx=True)

    return made_once(tmp_path_factory, "pairs", make_all)


def test_members_are_given_pairs_by_their_own_tokenizers(session: Path) -> None:
    manifest = Manifest.load(session / "cache")
    encodings = {member.name: member.preprocessing for member in manifest.members}
    fields = {name: to.fields for name, to in encodings.items() if isinstance(to, Tokenization)}
    assert fields == {"bert-0": FIELDS[:2], "bert-1": FIELDS, "ready-0": FIELDS}
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    first, second = texts(ROWS["test"], 2)[0], texts(ROWS["test"], 102)[0]
    for at in range(2):  # as the library alone answers
        own = AutoTokenizer.from_pretrained(session / f"teachers/bert-{at}")
        model = AutoModelForSequenceClassification.from_pretrained(session / f"teachers/bert-{at}").eval()
        given = own(first, second, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
        with torch.no_grad():
            wanted = model(**given).logits.numpy()
        found = Cache(session / "cache").open("test").read(np.arange(ROWS["test"]))[:, at]
        top, highest = found.max(1, keepdims=True), wanted.max(1, keepdims=True)
        np.testing.assert_allclose(found - top, wanted - highest, atol=5e-3)


def test_the_file_takes_pairs_from_the_same_columns_without_torch(session: Path, tmp_path: Path) -> None:
    model = session / "runs/hydra-s0/export/model.onnx"
    graph = onnxruntime.InferenceSession(str(model))
    assert {port.name for port in graph.get_inputs()} == set(FIELDS)
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from ensemble_distill.workflows.predict import predict\n"
        "print(json.dumps(predict(sys.argv[1], sys.argv[2]).rows))"
    )
    asked = [sys.executable, "-c", code, str(model), str(session / "test.csv")]
    rows = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert len(rows) == ROWS["test"]
    write_pairs(tmp_path / "turned.csv", ROWS["test"], 2)
    text = (tmp_path / "turned.csv").read_text().replace("hypothesis,premise", "premise,hypothesis")
    (tmp_path / "turned.csv").write_text(text)
    turned = predict(model, str(tmp_path / "turned.csv")).rows
    assert any(abs(a["probability"] - b["probability"]) > 1e-3 for a, b in zip(rows, turned, strict=True))
    (tmp_path / "lines.txt").write_text("the cat\n")
    with refused("pairs of texts", "premise and hypothesis"):
        predict(model, str(tmp_path / "lines.txt"))
    (tmp_path / "one.csv").write_text("premise\nthe cat\n")
    with refused("no column 'hypothesis'"):
        predict(model, str(tmp_path / "one.csv"))


def test_evaluation_and_another_text_of_the_pair(session: Path, tmp_path: Path) -> None:
    assert evaluate(read(session), "hydra-s0").models["student"]["nll"] > 0
    single = read(session, data__columns={"text": "premise", "labels": ["label"], "classes": ["cat", "dog", "owl"]})
    with refused("data.test"):
        evaluate(single, "hydra-s0")


def test_a_member_that_does_not_take_which_text_a_token_is_of_is_refused(session: Path) -> None:
    with refused("forward(input_ids, attention_mask)", "does not take token_type_ids"):
        cache_logits(read(session, teachers__model="model.py:make_blind", output__cache=str(session / "other")))
