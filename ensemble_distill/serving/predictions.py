"""What an exported student says of each row, as records, and as the text that `predict` writes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemble_distill import __version__
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.jsons import json_text, line_of_json
from ensemble_distill.runtime.names import harmless_cell
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks import open_task, task_names
from ensemble_distill.tasks.figures import UNCERTAINTIES

Record = dict[str, Any]  # of a row: its name, then a text or a number a column
Style = Literal["csv", "json", "jsonl", "parquet"]
ENDINGS: dict[str, Style] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
WISHED = ("abstains", "head")  # how the columns of wishes begin
PARQUET = b"PAR1"
MARK = "edistill"  # a key of a Parquet file's metadata, by which an earlier result is known


@dataclass(frozen=True)
class Wishes:
    """What is to be said of each row besides.

    Attributes:
        heads: what each head says by itself.
        abstain_above: rows that are more uncertain are marked, which somebody else should look at; None for no mark.
        by: the uncertainty that this is measured by.
    """

    heads: bool = False
    abstain_above: float | None = None
    by: str = "total_uncertainty"

    def __post_init__(self) -> None:
        """Raises EdistillError for a threshold that no row is above, or every row."""
        if self.abstain_above is not None and not 0 <= self.abstain_above < math.inf:
            raise EdistillError(f"--abstain-above is {self.abstain_above}: give a number that is not below 0.")


def records(served: Served, source: Source, wishes: Wishes) -> Iterator[Record]:
    """For each row: its name, what the task predicts of it, and the uncertainties that the student has.

    Raises:
        EdistillError: the inputs do not fit, or outputs of a row are none of a student, or it has not what is wished.
    """
    task = served.card.task
    if task.of_tokens and source.labels is not None:
        task.refuse_other_labels(source, "y of the input", str(served.path))
    for rows, of_rows in served.predict(source):
        labels = None if source.labels is None or not task.of_tokens else source.labels[rows.start : rows.stop]
        asked = of_rows if wishes.heads else {name: x for name, x in of_rows.items() if not name.startswith("head_")}
        names, outputs = task.each_served([source.name(row) for row in rows], rows.start, asked, labels)
        shown = [name for name in UNCERTAINTIES if name in outputs]
        heads = task.heads_served(outputs) if wishes.heads else []
        _refuse_wishes(served, wishes, shown, heads)
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
        for at, (name, prediction) in enumerate(zip(names, task.predictions(outputs), strict=True)):
            record = {"row": name, **prediction, **{shown_name: float(outputs[shown_name][at]) for shown_name in shown}}
            if wishes.abstain_above is not None:
                record["abstains"] = bool(outputs[wishes.by][at] > wishes.abstain_above)
            for number, of_head in enumerate(each):
                record |= {f"head {number} {key}": value for key, value in of_head[at].items()}
            yield record


def _refuse_wishes(served: Served, wishes: Wishes, shown: Sequence[str], heads: Sequence[Any]) -> None:
    if wishes.heads and not heads:
        raise EdistillError(
            f"{served.path} has one head ({served.card.method}), and --heads asks for each. Leave it out, or export a "
            "student with a head for each member."
        )
    if wishes.abstain_above is not None and wishes.by not in shown:
        raise EdistillError(
            f"--abstain-by is {wishes.by}, and {served.path} has {' and '.join(shown)}: a single head has no model "
            "uncertainty. Use --abstain-by total_uncertainty."
        )


def style_of(output: str | None) -> Style:
    """How a file is written where nobody says it: by its ending, else as CSV."""
    return next((style for ending, style in ENDINGS.items() if (output or "").lower().endswith(ending)), "csv")


def content(rows: Sequence[Record], style: Style) -> bytes:
    """The records as a file has them.

    Raises:
        EdistillError: Parquet without pyarrow.
    """
    return _parquet(rows) if style == "parquet" else formatted(rows, style).encode()


def formatted(rows: Sequence[Record], style: Style) -> str:
    """The records as CSV with a header, as one JSON array, or as JSON a line. In CSV no name is a formula; JSON has the
    exact names."""
    if style == "json":
        return json_text(rows)
    if style == "jsonl":
        return "".join(f"{line_of_json(row)}\n" for row in rows)
    if style == "parquet":
        raise EdistillError("Parquet is no text. Take another style, or write it to a file.")
    exact = frozenset(name for key in task_names() for name in open_task(key).exact)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["row"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value, exact) for name, value in row.items()} for row in rows)
    return text.getvalue()


def refuse_parquet(style: Style, output: Path | None) -> None:
    """Raise EdistillError where Parquet can't be written."""
    if style == "parquet" and output is None:
        raise EdistillError("Parquet is no text to print: name a file, -o predictions.parquet.")
    if style == "parquet" and find_spec("pyarrow") is None:
        raise EdistillError(
            "Parquet is written by pyarrow, which is not installed. Run pip install 'edistill[tables]', or name a file "
            "that ends in .csv, .json or .jsonl."
        )


def _parquet(rows: Sequence[Record]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {"row": ""})}
    table = pyarrow.table(columns).replace_schema_metadata({MARK: __version__})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _cell(name: str, value: Any, exact: frozenset[str]) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return harmless_cell(value)
    # the shortest text that float32 reads back as it was; NumPy's own goes into powers of ten from a million on
    return repr(float(str(np.float32(value)))) if name.partition(" ")[0] in exact else f"{value:.6g}"
