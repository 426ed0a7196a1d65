"""The predictions of an exported student, as a record per row and as the files that `predict` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemble_distill import __version__
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.jsons import json_text, line_of_json
from ensemble_distill.runtime.names import encodable, harmless_cell
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.serving.exported_file import ExportedFile, Outputs
from ensemble_distill.serving.wishes import Settled
from ensemble_distill.tasks import Task, open_task, task_names
from ensemble_distill.tasks.figures import UNCERTAINTIES

Record = dict[str, Any]  # of a row: its name, then a text or a number per column
Style = Literal["csv", "json", "jsonl", "parquet"]
ENDINGS: dict[str, Style] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
PARQUET = b"PAR1"
MARK = "edistill"  # key of a Parquet file's metadata that identifies an earlier result


def records(
    served: ExportedFile,
    source: Source,
    wishes: Settled,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Record]:
    """Yield, for each row, its name, the task's prediction, and the uncertainties that the student has.

    Args:
        wishes: what else each record contains.
        batch_size: see `ExportedFile.predict`.
        progress: reports progress if there is more than one batch.

    Raises:
        EdistillError: the inputs do not fit, or the outputs of a row are invalid.
    """
    task = served.card.task
    if task.of_tokens and source.labels is not None:
        task.refuse_other_labels(source, "y of the input", str(served.path))
    size, progress = batch_size or served.at_once, progress or Silent()
    if len(source) > size:
        progress.start("predicting", total=len(source), unit="rows")
    for rows, of_rows in served.predict(source, size):
        labels = None if source.labels is None or not task.of_tokens else source.labels[rows.start : rows.stop]
        asked = of_rows if wishes.heads else {name: x for name, x in of_rows.items() if not name.startswith("head_")}
        names, outputs = task.each_served([source.name(row) for row in rows], rows.start, asked, labels)
        shown = [name for name in UNCERTAINTIES if name in outputs]
        heads = task.heads_served(outputs) if wishes.heads else []
        usable = task.usable(outputs)
        for name in shown:
            usable = usable & np.isfinite(outputs[name])
        for head in heads:
            usable = usable & task.usable(head)
        if not usable.all():
            raise EdistillError(
                f"{names[int(np.argmin(usable))]} gives outputs that are not finite, or no probabilities "
                "or variances. Check its values, or export the run again."
            )
        each = [list(task.predictions(head)) for head in heads]
        inside = _inside(task, outputs, wishes)
        for at, (name, prediction) in enumerate(zip(names, task.predictions(outputs), strict=True)):
            record = {"row": name, **prediction, **{shown_name: float(outputs[shown_name][at]) for shown_name in shown}}
            if wishes.above is not None:
                record["abstains"] = bool(outputs[wishes.by][at] > np.float32(wishes.above))
            record |= next(inside)
            for number, of_head in enumerate(each):
                record |= {f"head {number} {key}": value for key, value in of_head[at].items()}
            yield record
        if len(source) > size:
            progress.advance(len(rows))
    if len(source) > size:
        progress.finish()


def _inside(task: Task, outputs: Outputs, wishes: Settled) -> Iterator[dict[str, Any]]:
    """The conformal set or interval of each row, if wished for."""
    if wishes.thresholds is None or task.conformal is None:
        return repeat({})
    return task.conformal.told(task.names, outputs, wishes.thresholds)


def style_of(output: str | None) -> Style:
    """The format of a file, by its suffix; CSV by default."""
    return next((style for ending, style in ENDINGS.items() if (output or "").lower().endswith(ending)), "csv")


def content(rows: Sequence[Record], style: Style) -> bytes:
    """The bytes of the records in a format.

    Raises:
        EdistillError: the format is Parquet, and pyarrow is not installed.
    """
    return _parquet(rows) if style == "parquet" else formatted(rows, style).encode()


def formatted(rows: Sequence[Record], style: Style) -> str:
    """The records as CSV with a header, as one JSON array, or as one JSON object per line.

    In CSV no cell is a formula to a spreadsheet, and the names of a set are separated by semicolons; JSON has the exact
    names.
    """
    if style == "json":
        return json_text(rows)
    if style == "jsonl":
        return "".join(f"{line_of_json(row)}\n" for row in rows)
    if style == "parquet":
        raise EdistillError("Parquet is not text. Take another style, or write it to a file.")
    exact = frozenset(name for key in task_names() for name in open_task(key).exact)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless_cell(name) for name in (rows[0] if rows else ["row"])])
    writer.writerows([_cell(name, value, exact) for name, value in row.items()] for row in rows)
    return text.getvalue()


def refuse_parquet(style: Style, output: Path | None) -> None:
    """Raise EdistillError if Parquet cannot be written."""
    if style == "parquet" and output is None:
        raise EdistillError("Parquet is not a text to print: name a file, -o predictions.parquet.")
    if style == "parquet" and find_spec("pyarrow") is None:
        raise EdistillError(
            "Parquet is written by pyarrow, which is not installed. Run pip install 'edistill[tables]', or name a file "
            "that ends in .csv, .json or .jsonl."
        )


def _parquet(rows: Sequence[Record]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    names = rows[0] if rows else {"row": ""}
    columns = {encodable(name): [encodable(row[name]) for row in rows] for name in names}
    table = pyarrow.table(columns).replace_schema_metadata({MARK: __version__})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _cell(name: str, value: Any, exact: frozenset[str]) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ";".join(harmless_cell(name.replace(";", "\\;")) for name in value)
    if not isinstance(value, float):
        return harmless_cell(value)
    # the shortest text that reads back as the same float32; NumPy's own uses exponents from a million on
    return repr(float(str(np.float32(value)))) if name.partition(" ")[0] in exact else f"{value:.6g}"
