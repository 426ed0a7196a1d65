"""The multi-headed student as one ONNX file that carries its uncertainties and all it needs to be served."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError, quoted
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import LARGEST
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.seals import BLANK, ONNX_KEY, seal
from ensemble_distill.serving.card import Card
from ensemble_distill.serving.served import Served
from ensemble_distill.students.student import Student
from ensemble_distill.tasks import Task


class Predictions(nn.Module):
    """x to the exported outputs, in the order of `names`."""

    def __init__(self, student: Student, x: Tensor) -> None:
        """`x` (B, ...) is any input: running it tells which outputs the student has."""
        super().__init__()
        self.student = student
        with torch.no_grad():
            self.names = tuple(named_outputs(student, x))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.student, x).values())


def named_outputs(student: Student, x: Tensor) -> dict[str, Tensor]:
    """What a student says of rows x (B, ...), in the order of the file: what its family emits, then the uncertainties,
    each (B,). What a single head does not have is absent."""
    predictive = student.predictive(student(x))
    summary = predictive.summary()
    uncertainties = {"total_uncertainty": summary.total, "data_uncertainty": summary.data}
    if predictive.has_model_uncertainty:
        uncertainties["model_uncertainty"] = summary.model
    return {**predictive.emitted(summary), **uncertainties}


def export_onnx(
    student: Student, config: StudentConfig, x: Tensor, path: Path, made_from: MadeFrom | None = None
) -> Path:
    """Write `path` and check it against torch.

    Args:
        student: in eval mode, on the CPU.
        config: what it is and where it came from; goes into the file's metadata.
        x: real preprocessed rows (B, *shape), B ≥ 1, to compare on, alone and together.
        path: the .onnx file; it appears only when the comparison has passed.
        made_from: the run that the student is of, which the file then names.

    Raises:
        EdistillError: the body cannot be exported, the file would exceed 2 GB, or onnxruntime's outputs differ
            from torch's by more than `Task.tolerance` says.
    """
    size = sum(t.numel() * t.element_size() for t in student.state_dict().values())
    if size > LARGEST:
        raise EdistillError(
            f"The student has {size / 2**30:.1f} GB of weights, and one ONNX file holds 2 GB. Use edistill export "
            "--safetensors."
        )
    what, origin = config.architecture, config.provenance
    name = "pixel_values" if what.kind == "pixels" else "input"
    example = torch.zeros(2, *what.shape)  # a batch of 1 would be taken for a constant
    module = Predictions(student, example).eval()
    model = _trace(module, example, name)
    card = Card(
        task=what.task,
        method=origin.method,
        version=__version__,
        kind=what.kind,
        shape=what.shape,
        preprocessing=what.preprocessing,
        members=origin.members,
        made_from=made_from,
    )
    onnx.helper.set_model_props(model, {**card.to_metadata(), ONNX_KEY: BLANK})
    onnx.checker.check_model(model)
    write_whole(
        path, seal(model.SerializeToString()), check=lambda written: _compare(module, what.task, Served(written), x)
    )
    return path


def _trace(module: Predictions, example: Tensor, name: str) -> onnx.ModelProto:
    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the exporter logs its steps, and prints whole graphs when it fails
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch's own exporter
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch_size")},),
                input_names=[name],
                output_names=[f"edistill.{name}" for name in module.names],  # which no body has
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds; all mean that this body cannot be exported
        raise EdistillError(
            f"torch cannot export this student's body to ONNX: {_reason(error)}. Rewrite that part of the body, or use "
            "edistill export --safetensors."
        ) from error
    finally:
        logging.disable(silenced)
    assert program is not None
    _forget_the_machine(program.model)
    _name_outputs(program.model.graph, module.names)
    model: onnx.ModelProto = program.model_proto
    return model


def _forget_the_machine(model: Any) -> None:
    """Remove the exporter's notes, which tell where on this machine the code of each node stands."""
    from onnxscript import ir

    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for noted in (node, *node.outputs):
                noted.metadata_props.clear()
                noted.doc_string = None
        for noted in (graph, *graph.inputs, *getattr(graph, "initializers", {}).values()):
            noted.metadata_props.clear()
            noted.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Call the outputs by their names. A body that takes a mean has a value of that name too, and it gets another."""
    from onnxscript import ir

    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in names:
                value.name = f"edistill.body.{value.name}"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom: the exporter wraps it in pages about itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return quoted(error)


@torch.no_grad()
def _compare(module: Predictions, task: Task, served: Served, x: Tensor) -> None:
    for batch in (x[:1], x):
        wanted = dict(zip(module.names, module(batch), strict=True))
        if not all(values.isfinite().all() for values in wanted.values()):
            raise EdistillError(
                "The student says numbers that are not finite on real rows, so nothing was written. Train it again, or "
                "calibrate it again (edistill calibrate)."
            )
        found = served.run(batch.numpy())
        for name, values in wanted.items():
            apart = np.abs(found[name] - values.numpy())
            limit = task.tolerance(name, {key: value.numpy() for key, value in wanted.items()})
            if not (apart <= limit).all():
                raise EdistillError(
                    f"The exported {name} differs from torch's by {apart.max():.2e} on {len(batch)} real rows (allowed:"
                    f" {np.max(limit):.0e}), so nothing was written. Use edistill export --safetensors, and report the "
                    "body."
                )
