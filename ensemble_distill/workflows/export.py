"""`edistill export`: a run in several file formats, or the ensemble as ONNX; each file is verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ensemble_distill.evaluation.price import Price
from ensemble_distill.evaluation.reference import reference_of_run
from ensemble_distill.exporting.beside import write_card_of_run
from ensemble_distill.exporting.formats import Formats
from ensemble_distill.exporting.onnx import export_onnx
from ensemble_distill.exporting.pixels import refuse_no_pixels
from ensemble_distill.exporting.program import export_program
from ensemble_distill.exporting.safetensors import export_safetensors
from ensemble_distill.exporting.versions import Versions
from ensemble_distill.runs.finding import find_run
from ensemble_distill.runs.folder import EXPORTS, ONNX, PROGRAM, SAFETENSORS
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import refuse_outside
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.students.own_row import refuse_dependent
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.reference import Reference
from ensemble_distill.workflows.export_ensemble import export_members
from ensemble_distill.workflows.export_merged import export_merged, refuse_not_merged
from ensemble_distill.workflows.export_pixels import export_pixels
from ensemble_distill.workflows.export_rows import CHECKED_ROWS, checked_on, real_rows
from ensemble_distill.workflows.export_smaller import export_smaller
from ensemble_distill.workspace.evaluating import Splits
from ensemble_distill.workspace.folders import refuse_trial
from ensemble_distill.workspace.workspace import Workspace


@dataclass(frozen=True)
class Exported:
    """The files written by an export.

    Attributes:
        files: the verified files, ONNX first.
        beside: the model card, and the settings that made the files.
        prices: the figures on validation rows of the float32 file, and of each file of lower precision; empty without
            such files.
        merged: the figures on validation rows of "student" and "merged"; empty if nothing was merged.
    """

    files: tuple[Path, ...]
    beside: tuple[Path, ...] = ()
    prices: tuple[Price, ...] = ()
    merged: Mapping[str, Figures] = field(default_factory=dict)


def export(
    settings: Settings,
    run: str | None = None,
    *,
    onnx: bool = False,
    safetensors: bool = False,
    fp16: bool = False,
    int8: bool = False,
    uint8_input: bool = False,
    program: bool = False,
    merge_heads: bool = False,
    force: bool = False,
    ensemble: bool = False,
    opset: int | None = None,
    ir_version: int | None = None,
    card: bool = True,
    trust: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a run into its `export/` folder, or the ensemble into a folder beside the runs.

    Args:
        run: a run's folder or name; the latest by default.
        onnx: write `model.onnx`.
        safetensors: write `model.safetensors`.
        fp16, int8: write `model-fp16.onnx` or `model-int8.onnx`, with all layers but the last in lower precision,
            besides `model.onnx`. The cost is measured on validation rows.
        uint8_input: write `model-uint8.onnx` too, which takes raw pixels of the student's size; with `fp16` or `int8`,
            also `model-fp16-uint8.onnx` or `model-int8-uint8.onnx`.
        program: write `model.pt2`, which torch runs without the code of the body.
        merge_heads: write `merged/`, one plain timm model whose classifier is the mean of the heads.
        force: write files of lower precision whatever they cost.
        ensemble: export the members in the settings instead of a run; see `export_members`.
        opset, ir_version: versions of the ONNX file; None for those that torch writes.
        card: write a model card, `README.md`, and the `edistill.toml` that made the files beside them.
        trust: run the code that a run from elsewhere names for its body; for members, load pickled checkpoints that
            name arbitrary globals.
        progress: receives notes on which output of the members was chosen, and on a state that the file cannot hold.

    Raises:
        EdistillError: no format was requested, there is no run, there is no data to verify on, or the file disagrees
            with the student.
    """
    asked = Formats(
        onnx=onnx,
        safetensors=safetensors,
        fp16=fp16,
        int8=int8,
        uint8_input=uint8_input,
        program=program,
        merge_heads=merge_heads,
        versions=Versions(opset, ir_version),
        force=force,
    )
    workspace = Workspace(settings, progress or Silent(), trust)
    if ensemble:
        asked.refuse_of_ensemble(run)
        return Exported(*export_members(workspace, asked.versions, card))
    found = find_run(Path(settings.output.runs), run)
    refuse_trial([found], settings.limit)
    refuse_outside(found.folder, found.folder / EXPORTS / ONNX)
    if asked.merge_heads:  # before other files are written
        refuse_not_merged(workspace, found)
    if asked.uint8_input:
        refuse_no_pixels(found.architecture, str(found.folder))
    with one_writer(found.folder):  # no training can replace the run meanwhile
        found.refuse_replaced()
        written = _written(workspace, found, asked)
        beside = write_card_of_run(found, found.folder / EXPORTS, workspace.progress) if card else ()
    return replace(written, beside=beside)


def _written(workspace: Workspace, run: Run, asked: Formats) -> Exported:
    """Write the requested files, without the card."""
    student, folder = run.student(trust=workspace.trusted), run.folder / EXPORTS
    prices, lost, files = list[Price](), dict[str, Figures](), list[Path]()
    known = None
    if asked.graphs or asked.program:
        x = _real_rows(workspace, run)
        refuse_dependent(student, x, str(run.folder))
    if asked.graphs or asked.program or asked.safetensors:
        known = _reference(workspace, run, student)
    if asked.graphs:
        of = (run.made_from, workspace.progress, known, asked.versions)
        files.append(export_onnx(student, run.config, x, folder / ONNX, *of))
    if asked.smaller:
        smaller, prices = export_smaller(workspace, run, files[0], asked, x)
        files += smaller
    if asked.uint8_input:
        files.append(export_pixels(files[0], x))
    if asked.safetensors:
        files.append(export_safetensors(student, run.config, folder / SAFETENSORS, run.made_from, known))
    if asked.program:
        files.append(export_program(student, run.config, x, folder / PROGRAM, run.made_from, known))
    if asked.merge_heads:
        merged, lost = export_merged(workspace, run, student, _real_rows(workspace, run))
        files.append(merged)
    return Exported(tuple(files), prices=tuple(prices), merged=lost)


def _reference(workspace: Workspace, run: Run, student: Student) -> Reference | None:
    """The student's figures on the calibration rows, from which `predict` derives thresholds."""
    splits = Splits(workspace, run.architecture.task)
    return reference_of_run(run, student, splits, workspace.workers, workspace.progress)


def _real_rows(workspace: Workspace, run: Run) -> torch.Tensor:
    """Some evenly spaced rows on which to compare torch with onnxruntime, from a split on which no choice depends."""
    split = checked_on(workspace.split_names)
    return torch.from_numpy(real_rows(workspace, split, CHECKED_ROWS, run.architecture, str(run.folder)))
