"""`edistill export`: a run as ONNX, as safetensors, or both, each verified."""

from __future__ import annotations

from pathlib import Path

import torch

from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.errors import EdistillError
from ensemble_distill.export.onnx import export_onnx
from ensemble_distill.export.safetensors import export_safetensors
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runs.folder import EXPORTS
from ensemble_distill.runtime.files import refuse_outside
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.spread import spread
from ensemble_distill.settings import Settings
from ensemble_distill.students.own_row import refuse_dependent
from ensemble_distill.workspace.splits import open_split, trusted_by

CHECKED_ROWS = 32


def export(
    settings: Settings,
    run: str | None = None,
    *,
    onnx: bool = False,
    safetensors: bool = False,
    trust: bool = False,
) -> list[Path]:
    """Write `export/model.onnx` and/or `export/model.safetensors` into the run; returns the files.

    Args:
        run: a run's folder or name; the latest by default.
        trust: run the code that a run from elsewhere names for its body.

    Raises:
        EdistillError: no format was asked for, no run, no data to verify on, or the file does not agree with the
            student.
    """
    if not (onnx or safetensors):
        raise EdistillError("No format was asked for. Pass --onnx, --safetensors, or both.")
    found = find_run(Path(settings.output.runs), run)
    folder = found.folder / EXPORTS
    written = []
    refuse_outside(found.folder, folder / "model.onnx")
    with one_writer(found.folder):  # from here on no training replaces the run
        found.refuse_replaced()
        student = found.student(trust=trusted_by(settings, trust))
        if onnx:
            x = _real_rows(settings, found.architecture.preprocessing)
            if tuple(x.shape[1:]) != found.architecture.shape:
                raise EdistillError(
                    f"{found.folder} takes inputs of shape {found.architecture.shape}, but the configured data gives "
                    f"{tuple(x.shape[1:])}. Export from the folder it was trained in."
                )
            refuse_dependent(student, x, str(found.folder))
            written.append(export_onnx(student, found.config, x, folder / "model.onnx", found.made_from))
        if safetensors:
            written.append(export_safetensors(student, found.config, folder / "model.safetensors", found.made_from))
    return written


def _real_rows(settings: Settings, preprocessing: Preprocessing | None) -> torch.Tensor:
    """Some rows to compare torch and onnxruntime on: of a split no choice hangs on, evenly spread."""
    names = [name for name in ("validation", "test", "train") if name in settings.splits()]
    if not names:
        raise EdistillError("An export is verified on real rows, and no data is configured. Set data.validation.")
    source = open_split(settings, names[0])
    return torch.from_numpy(plain_inputs(source, spread(len(source), CHECKED_ROWS), preprocessing))
