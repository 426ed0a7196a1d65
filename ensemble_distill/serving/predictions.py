"""What an exported student says of each row, as records, and as the text that `predict` writes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.jsons import json_text
from ensemble_distill.runtime.names import harmless_cell
from ensemble_distill.serving.served import UNCERTAINTIES, Outputs, Served

Record = dict[str, Any]  # of a row: its name, then a text or a number a column
Style = Literal["csv", "json"]

COVERED = 1.959963984540054  # standard deviations about the mean that hold 95 % of a normal distribution
ROUNDED = 0.01  # how far the float32 probabilities of a row are from 1 together, at most
CLASS = ("class", "probability")
INTERVAL = ("mean", "lower95", "upper95")  # written to the last digit: where they are far from 0, they differ in those
FIRST = (CLASS, INTERVAL)  # what can stand behind the row's name


def records(served: Served, source: Source) -> Iterator[Record]:
    """For each row: its name, the class and its probability, or the mean and its 95 % interval; and the uncertainties
    that the student has."""
    for rows, outputs in served.predict(source):
        _refuse_no_numbers(source, rows, outputs)
        predictions = _classes(outputs, served.card.classes) if "logits" in outputs else _intervals(outputs)
        for at, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
            uncertainties = {name: float(outputs[name][at]) for name in UNCERTAINTIES if name in outputs}
            yield {"row": source.name(row), **prediction, **uncertainties}


def _refuse_no_numbers(source: Source, rows: range, outputs: Outputs) -> None:
    """Raises: EdistillError when outputs of a row are not finite, or are no probabilities or variances."""
    shown = [name for name in ("logits", "mean", "variance", *UNCERTAINTIES) if name in outputs]
    usable = np.all([np.isfinite(outputs[name]).reshape(len(rows), -1).all(axis=1) for name in shown], axis=0)
    if "logits" in outputs:
        with np.errstate(all="ignore"):
            usable &= np.abs(np.exp(outputs["logits"]).sum(axis=1) - 1) < ROUNDED
    if "variance" in outputs:
        usable &= outputs["variance"] >= 0
    if not usable.all():
        raise EdistillError(
            f"{source.name(rows[int(np.argmin(usable))])} gives outputs that are not finite, or no probabilities or "
            "variances. Check its values, or export the run again."
        )


def _classes(outputs: Outputs, classes: Sequence[str]) -> Iterator[Record]:
    for probabilities in np.exp(outputs["logits"]):
        top = int(probabilities.argmax())
        yield {"class": classes[top], "probability": float(probabilities[top])}


def _intervals(outputs: Outputs) -> Iterator[Record]:
    for mean, variance in zip(outputs["mean"].tolist(), outputs["variance"].tolist(), strict=True):
        reach = COVERED * math.sqrt(variance)
        yield {"mean": mean, "lower95": mean - reach, "upper95": mean + reach}


def formatted(rows: Sequence[Record], style: Style) -> str:
    """The records as CSV with a header, or as one JSON array. In CSV no name is a formula; JSON has the exact names."""
    if style == "json":
        return json_text(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["row"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return harmless_cell(value)
    # the shortest text that float32 reads back as it was; NumPy's own goes into powers of ten from a million on
    return repr(float(str(np.float32(value)))) if name in INTERVAL else f"{value:.6g}"
