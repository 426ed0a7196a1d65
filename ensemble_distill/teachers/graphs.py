"""Parse and check ONNX files before any runtime loads them: sizes, locations of weights, inputs and outputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_distill.errors import EdistillError, first_few, first_line
from ensemble_distill.runtime.files import read_whole
from ensemble_distill.teachers.weights import refuse_pointer

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1  # bytes of a protobuf message
DEEPEST = 16  # levels of graphs nested in branches
PIECE = 1 << 20
REAL = ("float", "double", "float16")
# operators that keep the values of labels and token ids, and operators that keep the rows of a matrix
FORMS = frozenset({"Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
VALUES = frozenset({"Cast", "Identity", "DequantizeLinear"})
LOOK_UPS = frozenset({"ArrayFeatureExtractor", "Gather"})


@dataclass(frozen=True)
class Graph:
    """A parsed ONNX file.

    Attributes:
        model: the `ModelProto`, with the weights that are stored in the file itself.
        beside: the external files with the other weights.
        sha256: of the file and the external files together.
    """

    model: Any
    beside: tuple[Path, ...]
    sha256: str


def read_graph(path: Path) -> Graph:
    """Parse an `.onnx` file without running an operator or allocating memory for sizes it merely claims.

    Raises:
        EdistillError: it is too large, cannot be read, is not a graph, holds less data than it claims, or has weights
            outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]

    refuse_pointer(path)
    size = path.stat().st_size
    if size > LARGEST:
        raise EdistillError(
            f"{path} has {size:,} bytes, and an ONNX file ends at {LARGEST:,}. Save it with its weights beside it: "
            "onnx.save_model(model, path, save_as_external_data=True)."
        )
    content = read_whole(path, LARGEST)
    try:
        model = onnx.ModelProto.FromString(content)
    except (DecodeError, RecursionError, ValueError) as error:
        raise _corrupt(path, first_line(error)) from None
    if not model.graph.node or not model.graph.output:
        raise _corrupt(path, "it has no nodes, or no outputs")
    beside: dict[str, Path] = {}
    for tensor in _tensors(path, model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file = _external(path, tensor)
            beside[file.name] = file
        else:
            _refuse_less(path, tensor)
    digest = hashlib.sha256(content)
    for name in sorted(beside):
        with beside[name].open("rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
    return Graph(model, tuple(beside.values()), digest.hexdigest())


def _tensors(path: Path, model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the file, including those in branches and functions."""
    yield from _in_graph(path, model.graph, 0)
    for function in model.functions:
        yield from _in_nodes(path, function.node, 0)


def _in_graph(path: Path, graph: onnx.GraphProto, depth: int) -> Iterator[onnx.TensorProto]:
    if depth == DEEPEST:
        raise _corrupt(path, f"graphs stand in {DEEPEST} others")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(path, graph.node, depth)


def _in_nodes(path: Path, nodes: Any, depth: int) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] * attribute.HasField("sparse_tensor")),
            ):
                yield from (sparse.values, sparse.indices)
            for graph in (*attribute.graphs, *([attribute.g] * attribute.HasField("g"))):
                yield from _in_graph(path, graph, depth + 1)


def _external(path: Path, tensor: onnx.TensorProto) -> Path:
    """The file with a tensor's values, checked to be in the graph's folder and long enough."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = said.get("location", ""), path.parent.resolve()
    file: Path = path.parent / location
    if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise EdistillError(
            f"{path} takes {tensor.name or 'a tensor'} from {location!r}, which is outside its folder. Weights of a "
            "graph stand beside it: save it again with onnx.save_model(model, path, save_as_external_data=True)."
        )
    if not file.is_file():
        raise EdistillError(f"{path} takes {tensor.name} from {file}, which is not there. Put it beside the graph.")
    try:
        offset = int(said.get("offset", 0))
        length = int(said["length"]) if "length" in said else _bytes(tensor) or 0
    except ValueError:
        raise _corrupt(path, f"{tensor.name} begins or ends nowhere in {location}") from None
    claimed, there = _bytes(tensor), file.stat().st_size
    if offset < 0 or length < 0 or offset + length > there or (claimed is not None and claimed != length):
        raise EdistillError(
            f"{path} claims {claimed or length:,} bytes of {tensor.name} from byte {offset:,} of {file.name}, which "
            f"has {there:,}. Copy both files again."
        )
    return file


def _refuse_less(path: Path, tensor: onnx.TensorProto) -> None:
    """Refuse a tensor whose shape claims more or fewer bytes than the file has for it."""
    claimed = _bytes(tensor)
    if claimed is None:
        return
    there = len(tensor.raw_data)
    if not tensor.HasField("raw_data"):
        lists = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
        there = claimed if math.prod(tensor.dims) in [len(one) for one in lists] else sum(map(len, lists))
    if claimed != there:
        named, shape = tensor.name or "a tensor", list(tensor.dims)
        raise _corrupt(path, f"{named} claims {claimed:,} bytes by its shape {shape}, and has {there:,}")


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """The size that shape and type imply, -1 for a negative length.

    None for texts, complex numbers, and types with several numbers in a byte.
    """
    from onnx import TensorProto, helper

    packed = (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    if tensor.data_type in packed or TensorProto.DataType.Name(tensor.data_type).endswith(("INT4", "4E2M1", "INT2")):
        return None
    if any(length < 0 for length in tensor.dims):
        return -1
    return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _corrupt(path: Path, why: str) -> EdistillError:
    return EdistillError(f"{path} is not an ONNX graph that can be read: {why}. Copy it again, or export it again.")


# --- what goes in and comes out ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        kind: its element type, such as "float", "double" or "int64"; "map" for outputs with a table for each row.
        shape: with None for each variable length; None as a whole if the rank is unknown.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...] | None

    @property
    def told(self) -> str:
        lengths = "?" if self.shape is None else ", ".join("N" if n is None else str(n) for n in self.shape)
        return f"{self.name} {self.kind} ({lengths})"

    @property
    def is_matrix(self) -> bool:
        """Whether it may hold a row of real numbers for each row of the input."""
        return self.kind in REAL and (self.shape is None or len(self.shape) in (1, 2))


def ports(path: Path, values: Any) -> list[Port]:
    """The inputs or outputs of a graph as ports."""
    from onnx import TensorProto

    found = []
    for value in values:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            found.append(Port(value.name, "map", None))
            continue
        try:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        except ValueError:
            raise _corrupt(path, f"{value.name} is of type {tensor.elem_type}") from None
        dims = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim]
        found.append(Port(value.name, kind, tuple(dims) if tensor.HasField("shape") else None))
    return found


def given(path: Path, model: onnx.ModelProto) -> list[Port]:
    """The inputs that a caller has to give: those without values in the graph itself."""
    own = {tensor.name for tensor in model.graph.initializer}
    return ports(path, [value for value in model.graph.input if value.name not in own])


def embedding_rows(model: onnx.ModelProto, entry: str) -> int | None:
    """The number of tokens that a graph has embeddings for: the rows of the smallest matrix that its ids index.

    Args:
        entry: the name of the input with the ids.

    Returns:
        None if no such look-up is found.
    """
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 2}
    ids, found = {entry}, []
    for node in model.graph.node:  # in topological order
        first = node.input[0] if node.input else ""
        if node.op_type in FORMS and first in ids:
            ids.update(node.output)
        elif node.op_type in VALUES and first in rows:
            rows[node.output[0]] = rows[first]
        elif node.op_type == "Gather" and first in rows and node.input[1] in ids and _axis(node) == 0:
            found.append(rows[first])
    return min(found, default=None)


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def class_labels(model: onnx.ModelProto) -> tuple[int | str, ...] | None:
    """The labels of a classifier's outputs, in order; None if nothing says them.

    They are the constant in which the graph looks up its predicted label, else the labels of the converters' nodes if
    all agree, else those of the last ZipMap: classifiers inside a classifier may have other labels.
    """
    looked_up = _looked_up(model)
    if looked_up is not None:
        return looked_up
    found: set[tuple[int | str, ...]] = set()
    for node in model.graph.node:
        for attribute in node.attribute if node.domain == "ai.onnx.ml" else ():
            if attribute.name in ("classlabels_int64s", "classlabels_ints") and attribute.ints:
                found.add(tuple(attribute.ints))
            if attribute.name == "classlabels_strings" and attribute.strings:
                found.add(tuple(text.decode("utf-8", "replace") for text in attribute.strings))
    zipped = [node for node in model.graph.node if node.op_type == "ZipMap"]
    if len(found) > 1 and zipped:  # a classifier of classifiers: the last one gives the answer
        names = {a.name: a for a in zipped[-1].attribute}
        ints = names["classlabels_int64s"].ints if "classlabels_int64s" in names else []
        texts = names["classlabels_strings"].strings if "classlabels_strings" in names else []
        return (*ints, *(text.decode("utf-8", "replace") for text in texts))
    return found.pop() if len(found) == 1 else None


def _looked_up(model: onnx.ModelProto) -> tuple[int | str, ...] | None:
    """The constant from which an output takes its label by the position of the most probable class, if any."""
    from onnx import numpy_helper

    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for output in model.graph.output:
        node, steps = made_by.get(output.name), 0
        while node is not None and node.op_type in FORMS and steps < len(made_by):
            node, steps = made_by.get(node.input[0]), steps + 1
        if node is None or node.op_type not in LOOK_UPS or node.input[0] not in constants:
            continue
        values = numpy_helper.to_array(constants[node.input[0]]).ravel()
        if len(values) > 1 and values.dtype.kind in "iuOS":
            return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist())
    return None


def other_outputs(path: Path, outputs: list[Port], why: str) -> EdistillError:
    """The error for a graph in which no output, or more than one, can be the answer."""
    kept = next((port.name for port in outputs if port.is_matrix), None)
    remedy = (
        f"Keep the one that is the answer: onnx.utils.extract_model({path.name!r}, 'member.onnx', [names of inputs], "
        f"[{kept!r}])."
        if kept is not None
        else "Convert it so that one output holds a row of numbers for each row of the data. Or give in its place the "
        "scikit-learn estimator (.skops), or an .npz of what it says of each split."
    )
    return EdistillError(f"{path} has the outputs {first_few([port.told for port in outputs], 6)}, and {why}. {remedy}")
