"""`inspect` on an ONNX file that edistill did not write: what it is, and whether it can be a member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from tiny import refused
from typer.testing import CliRunner

from ensemble_distill.cli.app import app
from ensemble_distill.workflows.inspect import inspect


def graph(path: Path, inputs: int = 1, output: str = "probabilities") -> Path:
    names = [f"x{at}" for at in range(inputs)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in names]
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("Softmax", [names[0]], [output])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends, [out]), opset_imports=[helper.make_opsetid("", 13)], producer_name="others"
    )
    model.producer_version = "1.2"
    onnx.save(model, path)
    return path


def shown(path: Path) -> dict[str, str]:
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    pairs = (line.strip().partition("  ") for line in result.stdout.splitlines()[1:])
    return {name: value.strip() for name, _, value in pairs}


def test_what_goes_in_and_out_and_who_wrote_it(tmp_path: Path) -> None:
    record = inspect(graph(tmp_path / "a.onnx"))
    wanted: dict[str, Any] = {
        "kind": "graph",
        "producer": "others 1.2",
        "opset": {"ai.onnx": 13},
        "operators": 1,
        "inputs": [{"name": "x0", "type": "float", "shape": [None, 4]}],
        "outputs": [{"name": "probabilities", "type": "float", "shape": [None, 4]}],
        "classes": None,
        "problem": None,
    }
    assert {name: record[name] for name in wanted} == wanted
    assert record["member"]["output"] == "probabilities"
    told = shown(tmp_path / "a.onnx")
    assert told["takes"] == "x0 float (N, 4)"
    assert (told["opset"], told["written by"]) == ("ai.onnx 13", "others 1.2")
    assert told["as a member"] == "it says probabilities"


def test_why_it_can_be_no_member(tmp_path: Path) -> None:
    record = inspect(graph(tmp_path / "two.onnx", inputs=2))
    assert record["member"] is None
    assert "has 2 inputs" in record["problem"]
    assert shown(tmp_path / "two.onnx")["as a member"].startswith("no: ")


@pytest.mark.parametrize("content", [b"no model", b"\x08", b"\0" * 64])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with refused("a.onnx is not an ONNX file"):
        inspect(tmp_path / "a.onnx")
