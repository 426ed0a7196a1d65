"""ONNX files that are not ours: whatever their metadata and graphs say, one message, and nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_helpers import message_of
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from ensemble_distill.cli.app import app
from ensemble_distill.facts import Member, Preprocessing
from ensemble_distill.serving.card import Card
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.regression import Regression

WIDTH = 4
CLASSES = Card(
    task=Classification(("a", "b", "c")),
    method="kd",
    version="0.1.0",
    kind="features",
    shape=(WIDTH,),
    preprocessing=None,
    members=(Member("m", "0" * 64),),
)
NUMBERS = replace(CLASSES, task=Regression(), members=(Member("m", "0" * 64, "mean"),))
PIXELS = replace(CLASSES, kind="pixels", shape=(1, 2, 2), preprocessing=Preprocessing((2, 2), (0.5,), (0.5,)))


def constant(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def graph(
    nodes: Sequence[onnx.NodeProto] | None = None,
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, Any] | None = None,
    weights: Sequence[onnx.TensorProto] = (),
    float_type: int = TensorProto.FLOAT,
) -> onnx.GraphProto:
    """A linear classifier of `WIDTH` features, or what is given instead."""
    if nodes is None:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("LogSoftmax", ["z"], ["logits"])]
    weight = numpy_helper.from_array(
        np.arange(WIDTH * 3).reshape(WIDTH, 3).astype(helper.tensor_dtype_to_np_dtype(float_type)), "w"
    )
    ends = [{"x": ["B", WIDTH]} if inputs is None else inputs, {"logits": ["B", 3]} if outputs is None else outputs]
    infos = [[helper.make_tensor_value_info(n, float_type, shape) for n, shape in end.items()] for end in ends]
    return helper.make_graph(list(nodes), "g", infos[0], infos[1], [weight, *weights])


def numbers(variance: float = 1.0) -> onnx.GraphProto:
    """The mean of the features, with a variance."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "v"], ["variance"]),
    ]
    weights = [constant("nothing", 0), constant("v", variance), numpy_helper.from_array(np.array([1]), "axis")]
    return graph(nodes, outputs={"mean": ["B"], "variance": ["B"]}, weights=weights)


def model(of: onnx.GraphProto, card: Card = CLASSES, domain: str = "") -> onnx.ModelProto:
    made = helper.make_model(of, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    helper.set_model_props(made, card.to_metadata())
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("rows.npz", x=np.ones((5, WIDTH), np.float32))
    np.savez("pixels.npz", x=np.ones((5, 2, 2), np.uint8))
    return tmp_path


def save(made: onnx.ModelProto, metadata: dict[str, str] | None = None) -> None:
    if metadata is not None:
        helper.set_model_props(made, {entry.key: entry.value for entry in made.metadata_props} | metadata)
    Path("m.onnx").write_bytes(made.SerializeToString())


def edistill(*line: str) -> Result:
    return CliRunner().invoke(app, list(line))


def predicted(rows: str = "rows.npz") -> Result:
    return edistill("predict", rows, "-m", "m.onnx")


def one_message(result: Result) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), (result.output, result.exception)
    return message_of(result.stderr)


def refused(*said: str, rows: str = "rows.npz", inspect: bool = True) -> None:
    """`predict` and `inspect` say the same; where it takes rows to find out, `inspect` may know nothing of it."""
    for result in [predicted(rows), *([edistill("inspect", "m.onnx")] if inspect else [])]:
        message = one_message(result)
        for part in said:
            assert part in message


def test_the_models_here_are_taken_as_they_are(here: Path) -> None:
    for made, rows in ((model(graph()), "rows.npz"), (model(numbers(), NUMBERS), "rows.npz")):
        save(made)
        assert predicted(rows).exit_code == 0, predicted(rows).stderr
        assert edistill("inspect", "m.onnx").exit_code == 0


# --- metadata ---------------------------------------------------------------------------------------------------

KEYS = [key.removeprefix("edistill.") for key in CLASSES.to_metadata()]
DEEP = 100_000
WRONG: dict[str, str] = {
    "no JSON": "{",
    "empty": "",
    "deep lists": "[" * DEEP,
    "deep tables": '{"a":' * DEEP,
    "a number": "7",
    "a negative number": "-1",
    "a huge number": "1" + "0" * 400,
    "too many digits": "1" * 5000,
    "NaN": "NaN",
    "true": "true",
    "an empty list": "[]",
    "a list of numbers": "[1, 2]",
    "a list of nothing": "[null]",
    "a list of tables": "[{}]",
    "a list of lists": "[[[]]]",
    "an empty table": "{}",
    "a table": '{"name": 1, "size": [1], "mean": 3}',
    "a control character": '"\\u001b[2J"',
}
TEXT = {"method", "version"}  # where any text is one


@pytest.mark.parametrize("key", KEYS)
def test_metadata_of_any_kind_are_one_message(here: Path, key: str) -> None:
    for wrong, value in WRONG.items():
        save(model(graph()), {f"edistill.{key}": value})
        for result in (predicted(), edistill("inspect", "m.onnx"), edistill("inspect", "m.onnx", "--json")):
            if result.exit_code == 0:  # there is little that is right: a text, and an ensemble that nobody names
                assert (key in TEXT and wrong == "a control character") or (key, wrong) == ("members", "an empty list")
                assert "\x1b" not in result.stdout
            else:
                assert "m.onnx" in one_message(result)


VALUES = ("null", "3", '"0"', "[]", "{}", '"x"', "[1]", "[-1, 2]", '["a", "b"]', "[NaN]", "1e999")


@pytest.mark.parametrize("field", ["size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "other"])
def test_every_field_of_preprocessing_is_looked_at(here: Path, field: str) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["logits"]),
    ]
    right = model(graph(nodes, inputs={"x": ["B", 1, 2, 2]}), PIXELS)
    save(right)
    assert predicted("pixels.npz").exit_code == 0, "but for that field it is right"
    assert PIXELS.preprocessing is not None
    for value in VALUES:
        if (field, value) in {("mean", "[1]"), ("std", "[1]")}:
            continue
        shown = json.dumps(PIXELS.preprocessing.to_json())[:-1] + f', "{field}": {value}}}'
        save(right, {"edistill.preprocessing": shown})
        one_message(predicted("pixels.npz"))


def test_metadata_that_lack_a_key(here: Path) -> None:
    for lacking in KEYS:
        made = model(graph())
        helper.set_model_props(made, {k: v for k, v in CLASSES.to_metadata().items() if k != f"edistill.{lacking}"})
        save(made)
        refused("m.onnx has no edistill metadata" if lacking == "task" else f"without {lacking}")


def test_metadata_that_contradict_themselves_or_the_graph(here: Path) -> None:
    for card, changes, said in [
        (CLASSES, {"classes": []}, "classes are []"),
        (NUMBERS, {"classes": ["a"]}, "the task is regression, and classes is ['a']"),
        (CLASSES, {"classes": ["a", "a", "c"]}, "classes are ['a', 'a', 'c'], and not texts, each once"),
        (CLASSES, {"classes": ["a", "b"]}, "and not (5, 2)"),
        (CLASSES, {"shape": [WIDTH, 1, 1]}, "its rows are features of shape"),
        (CLASSES, {"shape": [WIDTH + 1]}, "and not one tensor(float), any number of (5,)"),
        (CLASSES, {"kind": "tensor"}, "its rows are tensor of shape"),
        (PIXELS, {"shape": [1, 10**9, 10**9]}, "its preprocessing makes (2, 2) of pixels"),
        (PIXELS, {"preprocessing": None}, "its preprocessing makes None of pixels"),
        (CLASSES, {"weights": [1.0] * 9}, "weights are (1.0, 1.0, 1.0"),
        (NUMBERS, {}, "it has no output mean, and logits"),
    ]:
        save(model(graph(), card), {f"edistill.{key}": json.dumps(value) for key, value in changes.items()})
        refused(said, rows="rows.npz", inspect="(5, 2)" not in said)


# --- files and graphs -------------------------------------------------------------------------------------------


def shaped(*nodes: onnx.NodeProto, **arguments: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: model(graph(list(nodes) or None, **arguments))


def after(operator: str, *inputs: str, weights: Sequence[onnx.TensorProto] = ()) -> Callable[[], onnx.ModelProto]:
    """What the logits go through last."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["y"]),
        helper.make_node(operator, ["y", *inputs], ["logits"]),
    ]
    return lambda: model(graph(nodes, outputs={"logits": None}, weights=weights))


def in_a_branch() -> onnx.ModelProto:
    """Weights elsewhere, named in a branch of a condition."""
    branches = [
        helper.make_graph([helper.make_node("Identity", ["b"], ["o"])], "b", [], [info], [external("b", "secret")])
        for info in [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)] * 2
    ]
    condition = numpy_helper.from_array(np.array(True), "c")
    nodes = [
        helper.make_node("If", ["c"], ["e"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["logits"]),
    ]
    return model(graph(nodes, weights=[condition]))


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def elsewhere(location: str) -> Callable[[], onnx.ModelProto]:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "e"], ["logits"])]
    return lambda: model(graph(nodes, weights=[external("e", location)]))


def in_a_constant() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["e"], value=external("e", "secret")),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "e"], ["logits"]),
    ]
    return model(graph(nodes))


def loop() -> onnx.ModelProto:
    """A loop whose body is not one."""
    body = helper.make_graph([], "body", [], [])
    return model(graph([helper.make_node("Loop", ["", ""], ["logits"], body=body)]))


def claims(*dims: int) -> onnx.ModelProto:
    tensor = TensorProto(name="h", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * 8)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Add", ["z", "h"], ["logits"])]
    return model(graph(nodes, weights=[tensor]))


def filled() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["t"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "t"], ["logits"]),
    ]
    return model(graph(nodes, weights=[numpy_helper.from_array(np.array([2**60]), "s")]))


UNREADABLE = "not an ONNX file that onnxruntime can run"

NAN, INF = constant("k", np.nan), constant("k", np.inf)
GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no graph": (onnx.ModelProto, "has no edistill metadata"),
    "no input": (shaped(helper.make_node("LogSoftmax", ["w"], ["logits"]), inputs={}), "its inputs are none"),
    "two inputs": (shaped(inputs={"x": ["B", WIDTH], "more": ["B"]}), "its inputs are x: tensor(float) ['B', 4], more"),
    "inputs of another width": (shaped(inputs={"x": ["B", WIDTH + 1]}), "m.onnx"),
    "inputs of another rank": (
        shaped(inputs={"x": ["B", 2, WIDTH]}, outputs={"logits": ["B", 2, 3]}),
        "its inputs are",
    ),
    "a batch of one": (
        shaped(inputs={"x": [1, WIDTH]}, outputs={"logits": [1, 3]}),
        "its inputs are x: tensor(float) [1",
    ),
    "inputs without a shape": (shaped(inputs={"x": None}, outputs={"logits": None}), "m.onnx"),
    "doubles": (shaped(float_type=TensorProto.DOUBLE), "its inputs are x: tensor(double)"),
    "halves": (shaped(float_type=TensorProto.FLOAT16), "tensor(float16)"),
    "another output": (
        shaped(helper.make_node("MatMul", ["x", "w"], ["y"]), outputs={"y": ["B", 3]}),
        "it has no output logits, and y",
    ),
    "integers": (after("Cast"), "m.onnx"),
    "one row of all": (after("ReduceMean"), "of 5 rows it gives logits of shape"),
    "NaN": (after("Add", "k", weights=[NAN]), "row 0 gives outputs that are not finite"),
    "infinity": (after("Add", "k", weights=[INF]), "row 0 gives outputs that are not finite"),
    "no probabilities": (after("Exp"), "row 0 gives outputs that are not finite, or no probabilities"),
    "large logits": (after("Add", "k", weights=[constant("k", 1e30)]), "or no probabilities"),
    "an operator of nobody": (after("Nonsense"), UNREADABLE),
    "a cycle": (
        shaped(helper.make_node("Add", ["x", "logits"], ["logits"])),
        UNREADABLE,
    ),
    "a loop of nothing": (loop, UNREADABLE),
    "claims of 2**60 values": (lambda: claims(2**30, 2**30), UNREADABLE),
    "claims of negative values": (lambda: claims(-1), UNREADABLE),
    "claims of an overflow": (lambda: claims(2**62, 2**62), UNREADABLE),
    "memory for 2**60 values": (filled, "m.onnx"),
    "weights elsewhere": (elsewhere("secret"), "weights that are to be read from secret"),
    "weights above": (elsewhere("../secret"), "weights that are to be read from ../secret"),
    "weights at the root": (elsewhere("/etc/passwd"), "weights that are to be read from /etc/passwd"),
    "weights at an address": (elsewhere("*/_ORT_MEM_ADDR_/*"), "weights that are to be read from"),
    "weights elsewhere in a constant": (in_a_constant, "weights that are to be read from secret"),
    "weights elsewhere in a branch": (in_a_branch, "weights that are to be read from secret"),
}
ROWS_NEEDED = {"one row of all", "NaN", "infinity", "no probabilities", "large logits", "memory for 2**60 values"}


@pytest.mark.thorough
def test_a_graph_that_is_not_ours(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in GRAPHS:
        made, said = GRAPHS[name]
        Path("secret").write_bytes(np.zeros(3, np.float32).tobytes())
        save(made())
        refused(said, inspect=name not in ROWS_NEEDED)
        assert capfd.readouterr() == ("", ""), "onnxruntime says nothing of its own"


def test_another_operator_set(here: Path) -> None:
    nodes = [helper.make_node("Mine", ["x"], ["logits"], domain="mine")]
    save(model(graph(nodes), domain="mine"))
    refused(UNREADABLE)


def test_variances_that_are_none(here: Path) -> None:
    for variance in [-1.0, np.nan, np.inf]:
        save(model(numbers(variance), NUMBERS))
        refused("row 0 gives outputs that are not finite, or no probabilities or variances", inspect=False)


@pytest.mark.thorough
def test_a_file_cut_anywhere(here: Path) -> None:
    whole = model(graph()).SerializeToString()
    for size in range(0, len(whole), 7):
        Path("m.onnx").write_bytes(whole[:size])
        refused("m.onnx", inspect=False)
        told = edistill("inspect", "m.onnx")  # what is whole without what edistill says of it is a graph of others
        assert told.exit_code == 2 or "edistill did not write" in told.stdout


def test_a_file_that_is_larger_than_any(here: Path) -> None:
    with Path("m.onnx").open("wb") as file:
        file.truncate(10 * 2**30)
    refused("m.onnx is not an ONNX file: it has", f"bytes, and {2**31 - 1:,} are read at most")


def test_any_name_of_the_input_will_do(here: Path) -> None:
    """It is what the file says, and predictions do not depend on it."""
    nodes = [helper.make_node("MatMul", ["other", "w"], ["z"]), helper.make_node("LogSoftmax", ["z"], ["logits"])]
    save(model(graph()))
    before = predicted().stdout
    save(model(graph(nodes, inputs={"other": ["B", WIDTH]})))
    assert predicted().stdout == before
