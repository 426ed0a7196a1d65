"""A student as a `torch.export` program (.pt2), which torch runs without the student's code."""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.onnx import Predictions
from ensemble_distill.exporting.tracing import reason_of
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import PROGRAM_CARD, PROGRAM_OUTPUTS
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.serving.card_of import card_of
from ensemble_distill.students.fields import nothing
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference
from ensemble_distill.tasks.task import Task

NOTES = ("stack_trace", "source_fn_stack", "from_node", "custom")  # metadata with paths of this machine


def export_program(
    student: Student,
    config: StudentConfig,
    x: Tensor,
    path: Path,
    made_from: MadeFrom | None,
    reference: Reference | None = None,
) -> Path:
    """Write `path`, with the metadata of ONNX files in its extra file `edistill.json`, and load it back.

    Args:
        student: in eval mode, on the CPU.
        x: real preprocessed rows (B, *shape), B ≥ 1, compared one alone and all together.
        made_from: the weights and the calibration of its run, which the file records.
        reference: statistics of calibration rows; None without any.

    Raises:
        EdistillError: torch cannot export the body, or the outputs of the file differ by more than `Task.tolerance`.
    """
    card = card_of(config, made_from, reference)
    example = nothing(2, card.shape, card.ids)
    module = Predictions(student, example).eval()
    said = {**card.to_metadata(), PROGRAM_OUTPUTS: json.dumps(module.names)}
    content = io.BytesIO()
    try:
        program = _quietly(_exported, module, example)
        _quietly(torch.export.save, program, content, extra_files={PROGRAM_CARD: json.dumps(said)})
    except Exception as error:  # torch raises many kinds of errors; all mean that this module cannot be exported
        raise EdistillError(
            f"torch cannot export this student's body as a program: {reason_of(error)}. Rewrite that part of the body, "
            "or use edistill export --safetensors."
        ) from error
    write_whole(path, content.getvalue(), check=lambda written: _compare(written, module, x, card.task))
    return path


def _exported(module: Predictions, example: Tensor) -> Any:
    batch = torch.export.Dim("batch_size")
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        for note in NOTES:
            node.meta.pop(note, None)
    return program


@torch.no_grad()
def _compare(written: Path, module: Predictions, x: Tensor, task: Task) -> None:
    """Compare the outputs of the first row alone, and of all rows together; the file is trusted, as it was just
    written."""
    back = _quietly(torch.export.load, written).module()
    for batch in (1, len(x)):
        wanted = {name: values.numpy() for name, values in module.named(x[:batch]).items()}
        for (name, values), found in zip(wanted.items(), back(x[:batch]), strict=True):
            apart, limit = np.abs(found.numpy() - values), task.tolerance(name, wanted)
            if not (apart <= limit).all():
                raise EdistillError(
                    f"The program's {name} differs from the student's by {apart.max():.2e} on {batch} real rows "
                    f"(allowed: {np.max(limit):.0e}), so nothing was written. Use edistill export --safetensors, and "
                    "report the body."
                )


def _quietly(do: Any, *given: Any, **named: Any) -> Any:
    """Call a function of torch's exporter without its logs and warnings."""
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return do(*given, **named)
    finally:
        logging.disable(logged)
