"""A graph that takes raw pixels: uint8 (B, H, W, C) of the student's size, scaled and normalized in the graph."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.ends import PIXELS
from ensemble_distill.students.architecture import Architecture

BELOW = "edistill.pixels."  # prefix of all added names


def refuse_no_pixels(of: Card | Architecture, named: str) -> Preprocessing:
    """The image preprocessing; raises EdistillError for a student of anything but images."""
    if of.kind != "pixels" or not isinstance(of.preprocessing, Preprocessing):
        raise EdistillError(f"--uint8-input is for pictures, and {named} takes {of.kind}. Leave it out.")
    return of.preprocessing


def normalized(pixels: NDArray[np.uint8], to: Preprocessing) -> NDArray[np.float32]:
    """Pixels (B, H, W, C) as the inner graph takes them, (B, C, H, W), by the same float32 steps."""
    x = (pixels.astype(np.float32) / np.float32(255) - np.array(to.mean, np.float32)) / np.array(to.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def with_pixels(model: onnx.ModelProto, to: Preprocessing) -> onnx.ModelProto:
    """The graph with ((x ÷ 255) − mean) ÷ std of uint8 pixels x (B, H, W, C) in front; nothing is resized."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    (given,) = graph.input
    batch, channels, height, width = given.type.tensor_type.shape.dim
    shape = [batch.dim_param, height.dim_value, width.dim_value, channels.dim_value]
    steps: list[tuple[str, NDArray[np.float32] | None]] = [
        ("Cast", None),
        ("Div", np.array(255, np.float32)),
        ("Sub", np.array(to.mean, np.float32)),
        ("Div", np.array(to.std, np.float32)),
        ("Transpose", None),
    ]
    attributes = {"Cast": {"to": onnx.TensorProto.FLOAT}, "Transpose": {"perm": [0, 3, 1, 2]}}
    made, value = [], PIXELS
    for at, (kind, by) in enumerate(steps):
        inputs = [value]
        if by is not None:
            inputs.append(f"{BELOW}by_{at}")
            graph.initializer.append(onnx.numpy_helper.from_array(by, inputs[1]))
        value = given.name if at == len(steps) - 1 else f"{BELOW}{at}"
        made.append(
            onnx.helper.make_node(kind, inputs, [value], name=f"{BELOW}{kind}_{at}", **attributes.get(kind, {}))
        )
    nodes = [*made, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, shape))
    return model
