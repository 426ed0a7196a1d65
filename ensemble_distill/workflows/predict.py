"""`edistill predict`: an exported student on images, a folder or arrays; an ONNX file runs without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.data import open_inputs
from ensemble_distill.data.columns import Declared
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.exported_files import export_at, is_exported_name
from ensemble_distill.runs.exports import calibrated_since, latest_export, refuse_stale
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.runtime.files import write_output
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.words import shell
from ensemble_distill.serving.batching import refuse_batch_size
from ensemble_distill.serving.kinds import open_file
from ensemble_distill.serving.predictions import (
    Record,
    Style,
    content,
    formatted,
    records,
    refuse_parquet,
    style_of,
)
from ensemble_distill.serving.target import refuse_target
from ensemble_distill.serving.wishes import Wishes, settled


@dataclass(frozen=True)
class Predictions:
    """A student's predictions for rows.

    Attributes:
        model: the student's file.
        style: how they are written.
        rows: for each row its name, the values that `Task.predicted` lists (for classification class and probability),
            and the uncertainties.
    """

    model: Path
    style: Style
    rows: list[Record]

    def text(self) -> str:
        """The content of `--output`: CSV with a header, one JSON array, or one JSON object per line."""
        return formatted(self.rows, self.style)


def predict(
    model: str | Path | None,
    inputs: str | Sequence[str],
    progress: Progress | None = None,
    *,
    runs: str | Path = "runs",
    output: str | Path | None = None,
    style: Style | None = None,
    heads: bool = False,
    abstain_above: float | None = None,
    coverage: float | None = None,
    abstain_by: str | None = None,
    alpha: float | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    changed: bool = False,
    columns: Declared | None = None,
    trust: Trust = NOTHING,
) -> Predictions:
    """Run an exported student on rows.

    Args:
        model: a file that `edistill export` wrote, `.onnx`, `.pt2` or `.safetensors`, or the folder it is in; None for
            the newest `model.onnx` in `runs`.
        inputs: image files, one folder, one `.npz` or one table; a single one need not be in a list.
        progress: receives progress, inputs that were skipped, and a warning if the run was calibrated after the export.
        output: a file to write the rows to; None to write nothing.
        style: how they are written; by default as the file's name ends, else as CSV.
        heads: include what each head predicts.
        abstain_above: mark rows with more uncertainty than this, in nats, or as a variance in regression; None for no
            mark.
        coverage: mark rows with more uncertainty than this share of the calibration rows; None for no mark.
        abstain_by: the uncertainty to mark by, "total_uncertainty" or "model_uncertainty"; by default the total, but
            for `coverage` the model uncertainty if the student has one.
        alpha: include the classes, labels or interval that miss the truth for at most this share of rows; None for
            none.
        batch_size: rows per batch; by default as many as 32 MiB of inputs and outputs hold, at most 1,024.
        overwrite: replace a file that no earlier call wrote.
        columns: the columns of a table, as `data.columns` in the settings. A model that records what it was trained on
            needs none; for one found in `runs` both have to agree.
        changed: whether the user changed the ONNX file since it was exported; see `Served`.
        trust: whose code may build the body of a `.safetensors` that is not from timm.

    Raises:
        EdistillError: the model or the inputs cannot be read, or do not fit each other; the model is in a run whose
            weights have changed, or lacks the figures of calibration rows that an option needs; the output may not be
            written there.
    """
    progress = progress or Silent()
    inputs = [inputs] if isinstance(inputs, str) else inputs
    _refuse_models(inputs)
    named, model = model is not None, latest_export(Path(runs)) if model is None else Path(model)
    output = None if output is None else Path(output)
    style = style or style_of(None if output is None else output.name)
    refuse_parquet(style, output)
    refuse_batch_size(batch_size)
    wishes = Wishes(heads, abstain_above, coverage, abstain_by, alpha)
    if output is not None:
        refuse_target(output, model, inputs, overwrite)
    model = export_at(model, progress.note)
    served = open_file(model, trust=trust, changed=changed)
    refuse_stale(served.path, served.card.made_from)
    if (told := calibrated_since(served.path, served.card.made_from)) is not None:
        progress.warn(told)
    wished = settled(wishes, served, progress)
    asked = served.columns(None if named and served.card.columns else columns)
    source = open_inputs(inputs, served.card.task.key, served.reading, asked, served.arrays, str(served.path))
    for remark in source.remarks if source.kind == "pixels" else ():  # other remarks are about labels
        progress.warn(remark)
    found = Predictions(model, style, list(records(served, source, wished, batch_size, progress)))
    if output is not None:
        write_output(output, content(found.rows, style))
    return found


def _refuse_models(inputs: Sequence[str]) -> None:
    """Raise EdistillError for an exported file among the inputs."""
    if model := next((name for name in inputs if is_exported_name(name) and Path(name).is_file()), None):
        rows = " ".join(shell(name) for name in inputs if name != model) or "INPUTS"
        raise EdistillError(
            f"{model} is a student, and stands where rows are given. Name it by --model: edistill predict {rows} "
            f"--model {shell(model)}."
        )
