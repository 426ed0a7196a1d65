"""What an exported student says of each row, as records, and as the text that `predict` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.jsons import json_text
from ensemble_distill.runtime.names import harmless_cell
from ensemble_distill.serving.served import Served
from ensemble_distill.tasks import open_task, task_names
from ensemble_distill.tasks.figures import UNCERTAINTIES

Record = dict[str, Any]  # of a row: its name, then a text or a number a column
Style = Literal["csv", "json"]


def records(served: Served, source: Source) -> Iterator[Record]:
    """For each row: its name, what the task predicts of it, and the uncertainties that the student has.

    Raises:
        EdistillError: the inputs do not fit, or outputs of a row are none of a student.
    """
    task = served.card.task
    if task.of_tokens and source.labels is not None:
        task.refuse_other_labels(source, "y of the input", str(served.path))
    for rows, of_rows in served.predict(source):
        labels = None if source.labels is None or not task.of_tokens else source.labels[rows.start : rows.stop]
        names, outputs = task.each_served([source.name(row) for row in rows], rows.start, of_rows, labels)
        usable = task.usable(outputs)
        shown = [name for name in UNCERTAINTIES if name in outputs]
        for name in shown:
            usable = usable & np.isfinite(outputs[name])
        if not usable.all():
            raise EdistillError(
                f"{names[int(np.argmin(usable))]} gives outputs that are not finite, or no probabilities "
                "or variances. Check its values, or export the run again."
            )
        for at, (name, prediction) in enumerate(zip(names, task.predictions(outputs), strict=True)):
            yield {"row": name, **prediction, **{shown_name: float(outputs[shown_name][at]) for shown_name in shown}}


def formatted(rows: Sequence[Record], style: Style) -> str:
    """The records as CSV with a header, or as one JSON array. In CSV no name is a formula; JSON has the exact names."""
    if style == "json":
        return json_text(rows)
    exact = frozenset(name for key in task_names() for name in open_task(key).exact)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["row"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value, exact) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(name: str, value: Any, exact: frozenset[str]) -> Any:
    if not isinstance(value, float):
        return harmless_cell(value)
    # the shortest text that float32 reads back as it was; NumPy's own goes into powers of ten from a million on
    return repr(float(str(np.float32(value)))) if name.partition(" ")[0] in exact else f"{value:.6g}"
