"""`edistill predict`: an exported ONNX student on images, a folder or arrays, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.data import open_inputs
from ensemble_distill.data.columns import Declared
from ensemble_distill.runs.exports import calibrated_since, latest_export, refuse_stale
from ensemble_distill.runtime.files import write_output
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.serving.predictions import Record, Style, formatted, records
from ensemble_distill.serving.served import Served
from ensemble_distill.serving.target import refuse_target


@dataclass(frozen=True)
class Predictions:
    """What a student says of rows.

    Attributes:
        model: the file that holds it.
        rows: for each its name, what `Task.predicted` lists (for classification class and probability), and the
            uncertainties.
    """

    model: Path
    rows: list[Record]

    def text(self, style: Style) -> str:
        """As `--output` has them: CSV with a header, or one JSON array."""
        return formatted(self.rows, style)


def predict(
    model: str | Path | None,
    inputs: str | Sequence[str],
    progress: Progress | None = None,
    *,
    runs: str | Path = "runs",
    output: str | Path | None = None,
    style: Style = "csv",
    overwrite: bool = False,
    changed: bool = False,
    columns: Declared | None = None,
) -> Predictions:
    """Ask an exported student about rows.

    Args:
        model: a file that `edistill export --onnx` wrote; None for the newest in `runs`.
        inputs: image files, one folder, one `.npz` or one table; a single one need not be in a list.
        progress: is told what of them was passed over, and when the run was calibrated since the export.
        output: a file to write the rows to, in the given style; None for none.
        overwrite: replace a file that no earlier call wrote.
        columns: of a table, what its columns are: the `data.columns` of the settings. A model that says what it was
            trained on needs none; where it was found in `runs` they are to agree.
        changed: the user changed the model since it was exported; see `Served`.

    Raises:
        EdistillError: the model or the inputs cannot be read, or do not fit each other; the model stands in a run whose
            weights are others; the output must not be written there.
    """
    progress = progress or Silent()
    named, model = model is not None, latest_export(Path(runs)) if model is None else Path(model)
    output = None if output is None else Path(output)
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if output is not None:
        refuse_target(output, model, inputs, overwrite)
    served = Served(model, changed=changed)
    refuse_stale(served.path, served.card.made_from)
    if (told := calibrated_since(served.path, served.card.made_from)) is not None:
        progress.warn(told)
    asked = served.columns(None if named and served.card.columns else columns)
    source = open_inputs(inputs, served.card.task.key, served.reading, asked)
    for remark in source.remarks if source.kind == "pixels" else ():  # of arrays those are labels, which none asks for
        progress.warn(remark)
    found = Predictions(model, list(records(served, source)))
    if output is not None:
        write_output(output, found.text(style).encode())
    return found
