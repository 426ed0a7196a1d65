"""A graph in lower precision, except for its last layers, so that the heads and the uncertainties stay float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.exporting.versions import opset_of
from ensemble_distill.runtime.files import scratch
from ensemble_distill.runtime.silence import of_its_own

LAYERS = ("Conv", "Gemm", "MatMul")  # operators with weights, which take most of the time
HALVED = ("LSTM", "GRU", "RNN", "Gather")  # further operators that float16 makes smaller
HALF = ".half"  # suffix of a weight that is needed in both precisions
GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
FLOAT = onnx.TensorProto.FLOAT

Rows = Mapping[str, NDArray[Any]]  # a batch, by the names of the graph's inputs


def in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its body in float16, weights and activations; inputs and outputs stay float32.

    Raises:
        EdistillError: there is no body, or onnxruntime's converter fails on it.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = _copy(model)
    body, tail = parts_of(model, "--fp16", (*LAYERS, *HALVED))
    try:
        with of_its_own():
            half = convert_float_to_float16(_alone(model, body, tail), keep_io_types=True)
            nodes = _sorted(half.graph)
    except Exception as error:  # the converter raises many kinds of errors
        raise _failed("--fp16", error) from error
    kept = {name for node in tail for name in node.input}
    weights = [weight for weight in model.graph.initializer if weight.name in kept]
    graph = model.graph
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend([*nodes, *tail])
    graph.initializer.extend([*half.graph.initializer, *weights])
    return model


def in_int8(model: onnx.ModelProto, rows: Sequence[Rows]) -> onnx.ModelProto:
    """The graph with its body in 8 bits: static QDQ, weights per channel, activations by their range on some rows.

    Weights use 7 bits, since signed sums of 8-bit products overflow on processors without VNNI.

    Args:
        rows: batches of training rows.

    Raises:
        EdistillError: there is no body, or onnxruntime cannot quantize it.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    _, tail = parts_of(model, "--int8", LAYERS)
    try:
        with scratch() as folder, of_its_own():
            written = str(folder / "model.onnx")
            quantize_static(
                _copy(model),  # a copy, since quantization changes it
                written,
                _reader(rows),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LAYERS),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[node.name for node in tail],
            )
            made = onnx.load(written)
    except Exception as error:  # onnxruntime's quantizer raises many kinds of errors
        raise _failed("--int8", error) from error
    made.ir_version = model.ir_version
    assert opset_of(made) == opset_of(model)
    return made


# --- parts ------------------------------------------------------------------------------------------------------


def parts_of(model: onnx.ModelProto, flag: str, layers: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """The nodes of the body, each followed by another layer, and those of the tail: the last layers and all that
    follows.

    Both are in the graph's order, and every node has a name.

    Args:
        layers: the operators of which the body needs at least one.

    Raises:
        EdistillError: the body has none of them, or the graph branches.
    """
    users: dict[str, list[int]] = defaultdict(list)
    nodes = list(model.graph.node)
    for at, node in enumerate(nodes):
        node.name = node.name or f"node_{at}"
        if any(attribute.type in GRAPHS for attribute in node.attribute):
            raise EdistillError(f"{flag} is for graphs without branches and loops, and this has {node.op_type}.")
        for name in node.input:
            users[name].append(at)
    before: dict[int, bool] = {}  # whether a layer follows the node
    for at in reversed(range(len(nodes))):
        following = [user for name in nodes[at].output for user in users[name]]
        before[at] = any(before[user] or nodes[user].op_type in LAYERS for user in following)
    body, tail = ([node for at, node in enumerate(nodes) if before[at] is inside] for inside in (True, False))
    if not any(node.op_type in layers for node in body):
        raise EdistillError(
            f"{flag} would change nothing: the last layer stays float32, so that uncertainties are exact, and no "
            f"{', '.join(layers)} comes before it. Leave {flag} out."
        )
    return body, tail


def _alone(model: onnx.ModelProto, body: Sequence[Any], tail: Sequence[Any]) -> onnx.ModelProto:
    """The body as a graph of its own, whose outputs are what the tail takes or the whole graph returns."""
    types = _types(model)
    made = [name for node in body for name in node.output]
    taken = {name for node in tail for name in node.input}
    ends = taken | {output.name for output in model.graph.output}
    weights = {weight.name: weight for weight in model.graph.initializer}
    alone, renamed = [], {}
    for node in body:
        own = onnx.NodeProto.FromString(node.SerializeToString())
        for at, name in enumerate(own.input):
            if name in weights:
                renamed[name] = own.input[at] = f"{name}{HALF}" if name in taken else name
        alone.append(own)
    initializers = []
    for name, new in renamed.items():
        weight = onnx.TensorProto.FromString(weights[name].SerializeToString())
        weight.name = new
        initializers.append(weight)
    outputs = [onnx.helper.make_tensor_value_info(name, types[name], None) for name in made if name in ends]
    used = {name for node in alone for name in node.input}
    inputs = [value for value in model.graph.input if value.name in used]
    graph = onnx.helper.make_graph(alone, "body", inputs, outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.output, *inferred.input)
    return defaultdict(lambda: FLOAT, {value.name: value.type.tensor_type.elem_type for value in values})


def _sorted(graph: Any) -> list[Any]:
    """The nodes in an order that puts each after its inputs, since the converter appends the nodes it adds."""
    known = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    waiting, found = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in known for name in node.input)]
        if not ready:
            raise ValueError("its nodes take what no node gives")
        for node in ready:
            known.update(node.output)
        found += ready
        waiting = [node for node in waiting if not any(node is one for one in ready)]
    return found


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def _reader(rows: Sequence[Rows]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._rows = iter(rows)

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            batch = next(self._rows, None)
            return None if batch is None else dict(batch)

    return Reader()


def _failed(flag: str, error: Exception) -> EdistillError:
    return EdistillError(f"onnxruntime cannot make the graph of {flag}: {quoted(error)}. Leave {flag} out.")
