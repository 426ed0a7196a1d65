"""What `inspect` shows of an ONNX graph that edistill did not write: its inputs, outputs and producer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.exports import ONNX_PREFIX
from ensemble_distill.settings import TeacherSettings
from ensemble_distill.teachers import onnx_file
from ensemble_distill.teachers.graphs import class_labels, given, ports, read_graph
from ensemble_distill.teachers.teacher import Context


def about(path: Path, settings: TeacherSettings, task: str) -> dict[str, Any] | None:
    """Describe an ONNX graph for `inspect`, or return None if edistill wrote it.

    Args:
        settings: the `[teachers]` table that applies to it.
        task: key of the task to read its outputs for.

    Raises:
        EdistillError: the file is not an ONNX graph or is damaged.
    """
    graph = read_graph(path)
    model = graph.model
    if any(entry.key.startswith(ONNX_PREFIX) for entry in model.metadata_props):
        return None
    labels = class_labels(model)
    try:
        asked = onnx_file.load(path, Context(settings, task=task)).member
        member, problem = asked.to_json(), None
    except EdistillError as error:
        member, problem = None, str(error)
    return {
        "kind": "graph",
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {one.domain or "ai.onnx": one.version for one in model.opset_import},
        "operators": len(model.graph.node),
        "inputs": [_told(port) for port in given(path, model)],
        "outputs": [_told(port) for port in ports(path, model.graph.output)],
        "classes": None if labels is None else list(labels),
        "member": member,
        "problem": problem,
        "sha256": graph.sha256,
        "bytes": path.stat().st_size + sum(one.stat().st_size for one in graph.beside),
    }


def _told(port: Any) -> dict[str, Any]:
    shape = None if port.shape is None else list(port.shape)
    return {"name": port.name, "type": port.kind, "shape": shape}
