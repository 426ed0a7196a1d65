"""`edistill predict`: an exported student on images, a folder or arrays; an ONNX file without torch."""

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
    """What a student says of rows.

    Attributes:
        model: the file that holds it.
        style: how they are written.
        rows: for each its name, what `Task.predicted` lists (for classification class and probability), and the
            uncertainties.
    """

    model: Path
    style: Style
    rows: list[Record]

    def text(self) -> str:
        """As `--output` has them: CSV with a header, one JSON array, or JSON a line."""
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
    """Ask an exported student about rows.

    Args:
        model: a file that `edistill export` wrote, `.onnx`, `.pt2` or `.safetensors`, or the folder it is in; None for
            the newest `model.onnx` in `runs`.
        inputs: image files, one folder, one `.npz` or one table; a single one need not be in a list.
        progress: is told how far it is, what of the inputs was passed over, and when the run was calibrated since the
            export.
        output: a file to write the rows to; None for none.
        style: how they are written; by default as the file's name ends, else as CSV.
        heads: say what each head says by itself, too.
        abstain_above: mark the rows that are more uncertain, in nats, of regression as a variance; None for no mark.
        coverage: mark those that are more uncertain than this share of the calibration rows; None for no mark.
        abstain_by: the uncertainty by which they are, "total_uncertainty" or "model_uncertainty"; by default the total,
            and of a coverage the model's where the student has one.
        alpha: say the classes, labels or interval that miss the truth of this share of rows at most; None for none.
        batch_size: rows that the model is asked about at once; by default as many as 32 MiB of inputs and outputs hold,
            1,024 at most.
        overwrite: replace a file that no earlier call wrote.
        columns: of a table, what its columns are: the `data.columns` of the settings. A model that says what it was
            trained on needs none; where it was found in `runs` they are to agree.
        changed: the user changed the ONNX file since it was exported; see `Served`.
        trust: whose code may make the body of a `.safetensors` that is none of timm's.

    Raises:
        EdistillError: the model or the inputs cannot be read, or do not fit each other; the model stands in a run whose
            weights are others, or says nothing of calibration rows, which were asked for; the output must not be
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
    for remark in source.remarks if source.kind == "pixels" else ():  # of arrays those are labels, which none asks for
        progress.warn(remark)
    found = Predictions(model, style, list(records(served, source, wished, batch_size, progress)))
    if output is not None:
        write_output(output, content(found.rows, style))
    return found


def _refuse_models(inputs: Sequence[str]) -> None:
    """Raise EdistillError for an exported file in the place of rows."""
    if model := next((name for name in inputs if is_exported_name(name) and Path(name).is_file()), None):
        rows = " ".join(name for name in inputs if name != model) or "INPUTS"
        raise EdistillError(
            f"{model} is a student, and stands where rows are given. Name it by --model: edistill predict {rows} "
            f"--model {model}."
        )
