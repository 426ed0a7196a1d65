"""Members in ONNX: networks and converters' classifiers, against onnxruntime and scikit-learn; and files to refuse."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from kinds_helpers import inputs, linear, linear_graph
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from teachers_helpers import context
from tiny import refused

from ensemble_distill.facts import Member
from ensemble_distill.tasks.classification import Classification
from ensemble_distill.tasks.multi_label import MultiLabel
from ensemble_distill.tasks.regression import Regression
from ensemble_distill.teachers import onnx_file
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.teacher import Context


def load(path: Path, using: Context | None = None) -> Member:
    return onnx_file.load(path, using or context()).member


def opened(path: Path, using: Context | None = None, task: Any = Classification) -> Answering:
    return onnx_file.load(path, using or context()).open(task)


def said(path: Path, using: Context | None = None, rows: int = 6) -> NDArray[np.float32]:
    return opened(path, using).answers("test", range(rows), inputs(rows=rows))


def logits(seed: int = 0, rows: int = 6) -> NDArray[np.float32]:
    weight, bias = linear(seed)
    answers: NDArray[np.float32] = inputs(rows=rows).numpy() @ weight.T + bias
    return answers


def saved(path: Path, model: Any, **external: Any) -> Path:
    onnx.save_model(model, path, **external)
    return path


# --- networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["N", 1, 4, 16])
def test_a_network_is_asked_in_batches_of_its_own_size(tmp_path: Path, rows: int | str) -> None:
    assert_allclose(said(saved(tmp_path / "m.onnx", linear_graph(0, rows))), logits(), atol=1e-5)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_inputs_are_of_the_graph_s_own_precision(tmp_path: Path, kind: int) -> None:
    tolerance = 1e-5 if kind == TensorProto.DOUBLE else 0.05
    assert_allclose(said(saved(tmp_path / "m.onnx", linear_graph(0, kind=kind))), logits(), atol=tolerance)


def test_probabilities_by_name_are_floored_and_the_member_says_so(tmp_path: Path) -> None:
    model = linear_graph(0, name="raw")
    model.graph.node.append(helper.make_node("Mul", ["raw", "many"], ["large"]))
    model.graph.node.append(helper.make_node("Softmax", ["large"], ["probabilities"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(20), "many"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]))
    path = saved(tmp_path / "m.onnx", model)
    assert load(path).output == "probabilities"
    assert load(path, context(output="probabilities")).output == "probabilities"
    asked = opened(path)
    assert asked.remark is None
    found = asked.answers("test", range(6), inputs(rows=6))
    assert asked.remark is not None
    assert "Member m says probabilities below 1e-07" in asked.remark
    wanted = torch.from_numpy(20 * logits()).softmax(1).numpy()
    assert_allclose(found, np.log(np.maximum(wanted, 1e-7)), atol=1e-2)
    assert found.min() == np.float32(np.log(1e-7))


def test_a_member_s_own_table_says_what_its_output_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", linear_graph(0, name="probabilities"))
    using = context(members={"m": {"output": "logits", "classes": ["2", "0", "1"]}}).of("m")
    assert_allclose(said(path, using), logits()[:, [1, 2, 0]], atol=1e-5)


def test_of_several_outputs_the_answer_is_plain_or_refused(tmp_path: Path) -> None:
    model = linear_graph(0, name="logits")
    model.graph.node.append(helper.make_node("Relu", ["x"], ["features"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 5]))
    assert_allclose(said(saved(tmp_path / "m.onnx", model)), logits(), atol=1e-5)
    model = linear_graph(0, name="out")
    model.graph.node.append(helper.make_node("Relu", ["x"], ["features"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 5]))
    path = saved(tmp_path / "m.onnx", model)
    assert_allclose(said(path, context(("a", "b", "c"))), logits(), atol=1e-5)
    with refused(
        "m.onnx has the outputs features float (N, 5), out float (N, 3)", "several could be it", "extract_model"
    ):
        load(path)


def test_a_mean_and_a_variance_are_two_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axis"], ["mean"]), helper.make_node("Exp", ["mean"], ["variance"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("variance", "mean")]
    entry = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "g", entry, outputs, [numpy_helper.from_array(np.array([1]), "axis")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    using = Context(context(output="mean-variance").settings, task="regression")
    found = opened(saved(tmp_path / "m.onnx", model), using, Regression).answers("test", range(4), inputs(rows=4))
    assert_allclose(found[:, 0], inputs(rows=4).numpy().sum(1), atol=1e-5)
    assert_allclose(found[:, 1], found[:, 0], atol=1e-5)


def test_pictures_know_their_size_and_channels(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    entry = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 6])]
    graph = helper.make_graph(nodes, "g", entry, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])])
    path = saved(
        tmp_path / "m.onnx", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    )
    to = load(path, context(preprocessing={"mean": [0.5], "std": [0.25]})).preprocessing
    assert to is not None
    assert (to.size, to.channels) == ((8, 6), 1)
    assert load(path).preprocessing is None
    with refused("Member m takes x float (N, 1, 8, 6)", "(3, 8, 6) a row at row 0 of test"):
        opened(path).answers("test", [0], inputs((3, 8, 6), 1))


# --- converters -------------------------------------------------------------------------------------------------


def zipped(seed: int, labels: list[Any]) -> Any:
    """What skl2onnx makes of a classifier: a label, and a table of each row."""
    model = linear_graph(seed, name="raw")
    key = "classlabels_int64s" if isinstance(labels[0], int) else "classlabels_strings"
    model.graph.node.append(helper.make_node("Softmax", ["raw"], ["p"]))
    model.graph.node.append(helper.make_node("ArgMax", ["p"], ["output_label"], axis=1, keepdims=0))
    model.graph.node.append(
        helper.make_node("ZipMap", ["p"], ["output_probability"], domain="ai.onnx.ml", **{key: labels})
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("output_label", TensorProto.INT64, ["N"]))
    kind = TensorProto.INT64 if isinstance(labels[0], int) else TensorProto.STRING
    value = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    sequence = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, value))
    model.graph.output.append(helper.make_value_info("output_probability", sequence))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        (["cat", "ape", "dog"], ("ape", "cat", "dog"), [1, 0, 2]),
        ([0, 1, 2], ("ape", "cat", "dog"), [0, 1, 2]),
        ([2, 0, 1], None, [1, 2, 0]),
        ([3, 7, 9], None, [0, 1, 2]),
        ([9, 3, 7], ("ape", "cat", "dog"), [1, 2, 0]),
        ([9, 3, 7], ("3", "9", "7"), [1, 0, 2]),
        ([0, 2, 1], ("1", "2", "3"), [0, 2, 1]),
    ],
)
def test_a_table_of_each_row_goes_by_its_class_labels(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...] | None, order: list[int]
) -> None:
    path = saved(tmp_path / "m.onnx", zipped(0, labels))
    using = context(names)
    assert load(path, using).output == "probabilities"
    wanted = torch.from_numpy(logits()).log_softmax(1).numpy()[:, order]
    assert_allclose(said(path, using), wanted, atol=1e-5)


def test_other_class_labels_than_the_data_s_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", zipped(0, ["cat", "ape", "cow"]))
    with refused("m.onnx's class labels names 3 classes", "only there: cow", "only in the data: dog"):
        load(path, context(("ape", "cat", "dog")))
    with refused("m.onnx's class labels names 3 classes", "only there: 8", "only in the data: 9"):
        load(saved(path, zipped(0, [3, 5, 8])), context(("3", "5", "9")))
    with refused("names 3 classes, the data has 2"):
        load(saved(tmp_path / "n.onnx", zipped(0, [0, 1, 2])), context(("ape", "cat")))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipmap", [True, False])
def test_scikit_learn_s_classifiers_say_what_they_said(tmp_path: Path, zipmap: bool) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.datasets import load_iris
    from sklearn.ensemble import BaggingClassifier, GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    iris = load_iris()
    x, y = iris.data.astype(np.float32), iris.target_names[iris.target]
    names = tuple(reversed(iris.target_names.tolist()))
    estimators: list[Any] = [
        RandomForestClassifier(5, random_state=0),
        GradientBoostingClassifier(n_estimators=3, random_state=0),
        make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=20, random_state=0)),
        BaggingClassifier(LogisticRegression(), 2, random_state=0),  # whose parts call the classes 0 to 2
    ]
    for estimator in estimators:
        estimator.fit(x, y)
        types = [("X", skl2onnx.common.data_types.FloatTensorType([None, 4]))]
        model = skl2onnx.to_onnx(estimator, initial_types=types, options={id(estimator): {"zipmap": zipmap}})
        path = saved(tmp_path / "m.onnx", model)
        found = opened(path, context(names)).answers("test", range(len(x)), torch.from_numpy(x))
        wanted = estimator.predict_proba(x)[:, ::-1]
        assert_allclose(np.exp(found), np.maximum(wanted, 1e-7), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_for_each_label_names_no_label(tmp_path: Path) -> None:
    """Its parts' class labels are 0 and 1, the values of a label."""
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    x = inputs(rows=40).numpy()
    estimator = OneVsRestClassifier(LogisticRegression()).fit(x, (logits(rows=40) > 0).astype(int))
    types = [("X", skl2onnx.common.data_types.FloatTensorType([None, x.shape[1]]))]
    model = skl2onnx.to_onnx(estimator, initial_types=types, options={id(estimator): {"zipmap": False}})
    using = replace(context(("ape", "cat", "dog")), task="multi-label")
    found = opened(saved(tmp_path / "m.onnx", model), using, MultiLabel).answers("test", range(40), torch.from_numpy(x))
    assert_allclose(torch.from_numpy(found).sigmoid(), estimator.predict_proba(x), atol=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------


def test_what_is_no_row_of_reals_is_refused(tmp_path: Path) -> None:
    model = linear_graph(0)
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 1]))
    with refused("m.onnx has 2 inputs (x float (N, 5), other float (N, 1))", "FloatTensorType([None, F])"):
        load(saved(tmp_path / "m.onnx", model))
    model = linear_graph(0)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with refused("m.onnx takes x int64 (N, 5)"):
        load(saved(tmp_path / "m.onnx", model))
    model = linear_graph(0)
    model.graph.node[-1].output[0] = "flat"
    model.graph.node.append(helper.make_node("Unsqueeze", ["flat", "axis"], [model.graph.output[0].name]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axis"))
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    with refused("(N, 3, 1), and none is a matrix of real numbers", "Convert it so that one output", ".skops"):
        load(saved(tmp_path / "m.onnx", model))


def beside(folder: Path) -> Any:
    """A graph with its weights in w.data."""
    saved(folder / "m.onnx", linear_graph(0), save_as_external_data=True, location="w.data", size_threshold=0)
    return onnx.load(folder / "m.onnx", load_external_data=False)


def test_weights_beside_the_graph_are_read_and_hashed(tmp_path: Path) -> None:
    beside(tmp_path)
    assert_allclose(said(tmp_path / "m.onnx"), logits(), atol=1e-5)
    before = load(tmp_path / "m.onnx").sha256
    content = bytearray((tmp_path / "w.data").read_bytes())
    content[0] ^= 1
    (tmp_path / "w.data").write_bytes(content)
    assert load(tmp_path / "m.onnx").sha256 != before
    (tmp_path / "w.data").write_bytes(content[:40])
    with refused("m.onnx claims", "bytes of", "of w.data, which has 40"):
        load(tmp_path / "m.onnx")
    (tmp_path / "w.data").unlink()
    with refused("m.onnx takes w from", "w.data, which is not there"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "teachers"
    folder.mkdir()
    model = beside(folder)
    (tmp_path / "secret").write_bytes(bytes(1000))
    (folder / "link").symlink_to(tmp_path / "secret")
    for tensor in model.graph.initializer:
        entries = {entry.key: entry for entry in tensor.external_data}
        entries["location"].value = location
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with refused("m.onnx takes w from", repr(location), "outside its folder"):
        load(folder / "m.onnx")


def test_a_tensor_in_a_branch_is_looked_at_too(tmp_path: Path) -> None:
    model = linear_graph(0)
    outside = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside)], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with refused("takes hidden from '../secret'"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("dims", [[10**9, 10**9], [2**62, 4], [4], [-1, 15]])
def test_tensors_that_claim_another_size_are_refused_at_once(tmp_path: Path, dims: list[int]) -> None:
    model = linear_graph(0)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with refused("m.onnx is not an ONNX graph that can be read: w claims", f"{dims}", "and has 60"):
        load(tmp_path / "m.onnx")


def test_operators_of_nobody_are_refused(tmp_path: Path) -> None:
    model = linear_graph(0)
    model.graph.node[0].domain = "my.own"
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    with warnings.catch_warnings(), refused("onnxruntime cannot load", "m.onnx", "my.own"):
        opened(saved(tmp_path / "m.onnx", model))
