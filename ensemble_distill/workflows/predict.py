"""`edistill predict`: an exported ONNX student on images, a folder or arrays, without torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemble_distill.config import Settings
from ensemble_distill.data import open_inputs
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.files import json_text, write_text
from ensemble_distill.runtime.names import harmless_cell
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.serving import Served, records

WHOLE = ("mean", "lower95", "upper95")  # written to the last digit: where they are far from 0, they differ in those


def latest_export(settings: Settings) -> Path:
    """The newest `export/model.onnx` of the runs. Raises EdistillError when there is none."""
    runs = Path(settings.output.runs)
    found = [*runs.glob("*/export/model.onnx"), *runs.glob("*/generation-*/export/model.onnx")]
    exports = sorted(found, key=lambda path: path.stat().st_mtime)
    if not exports:
        raise EdistillError(f"{runs} holds no exported student. Run edistill export --onnx, or pass --model FILE.")
    return exports[-1]


def predict(model: Path, inputs: Sequence[str], progress: Progress | None = None) -> list[dict[str, Any]]:
    """A record per row: its name, class and probability, or mean and 95 % interval; and the uncertainties.

    Args:
        model: a file that `edistill export --onnx` wrote.
        inputs: image files, one folder, or one `.npz`.
        progress: is warned of what of them was passed over.

    Raises:
        EdistillError: the model or the inputs cannot be read, or do not fit each other.
    """
    served = Served(model)
    source = open_inputs(inputs, served.card.task)
    for remark in source.remarks if source.kind == "pixels" else ():  # of arrays those are labels, which none asks for
        (progress or Silent()).warn(remark)
    return list(records(served, source))


def formatted(rows: Sequence[dict[str, Any]], style: Literal["csv", "json"]) -> str:
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
    return repr(float(str(np.float32(value)))) if name in WHOLE else f"{value:.6g}"


def refuse_target(path: Path, model: Path, inputs: Sequence[str]) -> None:
    """Raise EdistillError when a result must not go to `path`: it is read from, or is no ordinary file."""
    if path.exists() and not path.is_file():
        raise EdistillError(f"{path} is no ordinary file. Name a file to write.")
    if path.resolve() in {model.resolve(), *(Path(name).resolve() for name in inputs)}:
        raise EdistillError(f"{path} is one of the files that are read. Name another to write.")


def save(path: Path, content: str) -> None:
    """Write a result file, whole or absent. Raises EdistillError when its folder does not exist."""
    if not path.parent.is_dir():
        raise EdistillError(f"{path.parent} is no folder, so {path.name} cannot be written there. Make it first.")
    write_text(path, content)
