"""`edistill export --fp16` and `--int8`: the exported graph in lower precision, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import torch

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.exported import ExportedRun
from ensemble_distill.evaluation.given import Given
from ensemble_distill.evaluation.price import BEFORE, Price, prices, refuse_dear
from ensemble_distill.evaluation.reference import reference_of_run
from ensemble_distill.exporting.formats import Formats
from ensemble_distill.exporting.onnx import sealed_with
from ensemble_distill.exporting.pixels import refuse_no_pixels, with_pixels
from ensemble_distill.exporting.precision import Rows, in_float16, in_int8
from ensemble_distill.runs.exports import onnx_content
from ensemble_distill.runs.folder import FLOAT16, FORMATS, INT8, RAW
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import scratch, write_whole
from ensemble_distill.serving.card import Card, Precision
from ensemble_distill.serving.served import Served
from ensemble_distill.workflows.export_pixels import as_without, write_pixels
from ensemble_distill.workflows.export_rows import real_rows
from ensemble_distill.workspace.evaluating import open_for_evaluation
from ensemble_distill.workspace.workspace import Workspace

SEEN, ROWS, BATCH = "train", 256, 32  # the split and rows from which int8 learns the range of numbers
PRECISIONS: dict[str, Precision] = {FLOAT16: "float16", INT8: "int8"}


def export_smaller(
    workspace: Workspace, run: Run, graph: Path, asked: Formats, x: torch.Tensor
) -> tuple[list[Path], list[Price]]:
    """Write the requested files beside the float32 file, which has just been written.

    If raw pixels are requested, each is written a second time with built-in preprocessing.

    Args:
        x: real rows (B, *shape), on which graphs of raw pixels are compared with those without.

    Returns:
        The files, and the figures on validation rows of the float32 file and of each of these.

    Raises:
        EdistillError: the graph has no such form, there are no rows to measure on, or the loss exceeds the stated
            limit.
    """
    whole, plain = ExportedRun.open_file(graph), onnx.ModelProto.FromString(onnx_content(graph))
    made: dict[str, onnx.ModelProto] = {}
    if asked.fp16:
        made[FLOAT16] = in_float16(plain)
    if asked.int8:
        made[INT8] = in_int8(plain, _calibration_rows(workspace, whole))
    if asked.uint8_input:
        to = refuse_no_pixels(whole.served.card, str(graph))
        made |= {RAW[name]: with_pixels(model, to) for name, model in made.items()}
    given = open_for_evaluation(workspace, run)
    with scratch() as folder:
        tried = [_tried(given, run, whole.served.card, model, folder / name) for name, model in made.items()]
        first, *found = prices(given, [whole, *tried])
    if not asked.force:
        for price in found:
            refuse_dear(price, first, FORMATS[BEFORE.get(price.file, price.file)])
    files = [graph.with_name(price.file) for price in found]
    for path, file, price in zip(files, tried, found, strict=True):
        card = replace(file.served.card, price=price.to_metadata())
        if card.input == "uint8":  # compared with the file without preprocessing, which has been written before
            write_pixels(path, made[price.file], card, as_without(Served(graph.with_name(BEFORE[price.file])), x))
        else:
            write_whole(path, sealed_with(made[price.file], card), check=_reads)
    sized = [replace(price, bytes=path.stat().st_size) for path, price in zip(files, found, strict=True)]
    return files, [first, *sized]


def _reads(written: Path) -> None:
    Served(written)


def _tried(given: Given, run: Run, of: Card, model: onnx.ModelProto, path: Path) -> ExportedRun:
    """A graph as a temporary file to evaluate, with its own figures on the calibration rows."""
    name = BEFORE.get(path.name, path.name)
    card = replace(of, precision=PRECISIONS[name], input="float32" if name == path.name else "uint8", reference=None)
    write_whole(path, sealed_with(model, card))
    file = ExportedRun.open_file(path)
    known = reference_of_run(run, file.student(), given.splits, given.workers, given.progress)
    file.served.card = replace(card, reference=known)
    return file


def _calibration_rows(workspace: Workspace, whole: ExportedRun) -> list[Rows]:
    """Batches of training rows as the student sees them, which determine the range of its numbers."""
    if SEEN not in workspace.split_names:
        raise EdistillError("--int8 learns the range of numbers from training rows. Set data.train, or leave it out.")
    x = real_rows(workspace, SEEN, ROWS, whole.architecture, str(whole.folder))
    assert isinstance(whole.served, Served)
    return [whole.served.given(x[at : at + BATCH]) for at in range(0, len(x), BATCH)]
