"""Members of texts whose tokenizer gives tokens that they have no embedding of: refused as they open, not at a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from text_helpers import CLASSES, a_text_folder, bert, needs_transformers, quiet, save_tokenizer, tokenizer
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Part, Several, Tokenization, Tokenizer
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.students.embeddings import refuse_fewer_embeddings
from ensemble_distill.students.fields import shown
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.graphs import embedding_rows
from ensemble_distill.teachers.teacher import Context, Teacher

FIELDS = ("input_ids", "attention_mask")
MODEL = """
from torch import nn
class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.of, self.last = nn.Embedding(ROWS, 4), nn.Linear(4, 3)
    def forward(self, input_ids, attention_mask):
        return self.last(self.of(input_ids).mean(1))
"""


def listed(path: Path, **said: Any) -> Teacher:
    section = TeacherSettings.model_validate(said)
    (teacher,) = open_teachers(path, Context(section, names=CLASSES, task="classification"))
    return teacher


def graph(path: Path, rows: int, axis: int = 0) -> Path:
    """Ids are cast and look up rows of a matrix that is cast, too."""
    table = np.zeros((rows, 3) if axis == 0 else (3, rows), np.float16)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["small"], to=TensorProto.INT32),
        helper.make_node("Cast", ["table"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["wide", "small"], ["found"], axis=axis),
        helper.make_node("ReduceMean", ["found"], ["logits"], axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in FIELDS]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])]
    made = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(table, "table")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def test_a_folder_with_the_tokenizer_of_another_is_refused_with_both_numbers(tmp_path: Path) -> None:
    needs_transformers()
    path = a_text_folder(tmp_path / "m", 0)
    listed(path).build()
    with quiet():
        own = tokenizer().get_vocab_size()
        more = save_tokenizer(path, extra=("one", "two", "three"))
    assert more == own + 3
    with pytest.raises(EdistillError, match=rf"(?s)\bm\b.*\b{own}\b.*\b{more}\b.*save_pretrained"):
        listed(path).build()
    with quiet():  # an embedding that was padded to a rounder number has a place for all
        bert(64, 0).save_pretrained(path)
    listed(path).build()


def test_a_module_of_one_s_own_is_refused_with_both_numbers(tmp_path: Path) -> None:
    made = tokenizer()
    count = made.get_vocab_size()
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    said = {"tokenizer": str(tmp_path / "tokenizer.json"), "length": 8}
    for rows in (count, count - 1):
        (tmp_path / f"model_{rows}.py").write_text(MODEL.replace("ROWS", str(rows)))
        state = {"of.weight": torch.zeros(rows, 4), "last.weight": torch.zeros(3, 4), "last.bias": torch.zeros(3)}
        torch.save(state, tmp_path / "m.pth")
        teacher = listed(tmp_path / "m.pth", model=f"{tmp_path}/model_{rows}.py:Bag", preprocessing=said)
        if rows == count:
            teacher.build()
            continue
        with pytest.raises(EdistillError, match=rf"\b{rows}\b.*\b{count}\b.*preprocessing\.tokenizer"):
            teacher.build()


def test_a_graph_is_refused_with_both_numbers(tmp_path: Path) -> None:
    made = tokenizer()
    count = made.get_vocab_size()
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    said = {"tokenizer": str(tmp_path / "tokenizer.json"), "length": 8}
    listed(graph(tmp_path / "m.onnx", count), preprocessing=said)
    with pytest.raises(EdistillError, match=rf"\b{count - 1}\b.*\b{count}\b.*preprocessing\.tokenizer"):
        listed(graph(tmp_path / "m.onnx", count - 1), preprocessing=said)


@pytest.mark.parametrize(
    ("axis", "entry", "rows"), [(0, "input_ids", 7), (0, "attention_mask", None), (1, "input_ids", None)]
)
def test_a_graph_s_embedding_is_what_the_ids_take_rows_of(
    tmp_path: Path, axis: int, entry: str, rows: int | None
) -> None:
    assert embedding_rows(onnx.load(graph(tmp_path / "m.onnx", 7, axis)), entry) == rows


class Net(nn.Module):
    """Looks rows up without an nn.Embedding."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, 3))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.embedding(input_ids, self.table).mean(1)


@pytest.mark.parametrize(("rows", "refused"), [(9, False), (8, True), (0, False)])
def test_a_table_that_is_no_embedding_is_told_by_what_it_fails_on(rows: int, refused: bool) -> None:
    to = Tokenization(Tokenizer.of(tokenizer().to_str()), 5, FIELDS)  # type: ignore[arg-type]
    network = shown(Net(rows).eval(), to)
    if not refused:  # what fails on any token is told where it is asked about rows
        refuse_fewer_embeddings(network, to, 9, "It", "Do so.")
        return
    with pytest.raises(EdistillError, match=r"It .*\b9\b.*\b8\b.*Do so\."):
        refuse_fewer_embeddings(network, to, 9, "It", "Do so.")


def test_a_text_beside_another_array_is_held_against_its_embedding_too() -> None:
    class Two(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.of = nn.Embedding(rows, 4)

        def forward(self, x: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return torch.cat([self.of(input_ids).mean(1), x], dim=1)

    text = Tokenization(Tokenizer.of(tokenizer().to_str()), 5, FIELDS)  # type: ignore[arg-type]
    to = Several((Part("x", "x", "features", (2,)), Part("text", "text", "text", (2, 5), text)))
    refuse_fewer_embeddings(shown(Two(9).eval(), to), to, 9, "It", "Do so.")
    with pytest.raises(EdistillError, match=r"It .*\b8\b.*\b9\b.*Do so\."):
        refuse_fewer_embeddings(shown(Two(8).eval(), to), to, 9, "It", "Do so.")
