"""`edistill predict`: an exported ONNX student on images, a folder or arrays, without torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemble_distill.data import open_inputs
from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.walk import files_below, place
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.stale import calibrated_since, refuse_stale
from ensemble_distill.runtime.files import is_stream, real, write_output
from ensemble_distill.runtime.jsons import json_text
from ensemble_distill.runtime.names import harmless_cell
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.serving.served import EXPORTED, UNCERTAINTIES, Served, records
from ensemble_distill.settings import Settings

WHOLE = ("mean", "lower95", "upper95")  # written to the last digit: where they are far from 0, they differ in those


def latest_export(settings: Settings) -> Path:
    """The newest `export/model.onnx` of the runs. Raises EdistillError when there is none."""
    runs = Path(settings.output.runs)
    found = [*runs.glob(f"*/{EXPORTED}"), *runs.glob(f"*/generation-*/{EXPORTED}")]
    exports = sorted(found, key=lambda path: path.stat().st_mtime)
    if not exports:
        raise EdistillError(f"{runs} holds no exported student. Run edistill export --onnx, or pass --model FILE.")
    return exports[-1]


def predict(
    model: Path, inputs: Sequence[str], progress: Progress | None = None, *, changed: bool = False
) -> list[dict[str, Any]]:
    """A record per row: its name, class and probability, or mean and 95 % interval; and the uncertainties.

    Args:
        model: a file that `edistill export --onnx` wrote.
        inputs: image files, one folder, or one `.npz`.
        progress: is told what of them was passed over, and when the run was calibrated since the export.
        changed: the user changed the model since it was exported; see `Served`.

    Raises:
        EdistillError: the model or the inputs cannot be read, or do not fit each other; the model stands in a run whose
            weights are others.
    """
    progress = progress or Silent()
    served = Served(model, changed=changed)
    refuse_stale(served.path, served.card.made_from)
    if (told := calibrated_since(served.path, served.card.made_from)) is not None:
        progress.note(told)
    source = open_inputs(inputs, served.card.task)
    for remark in source.remarks if source.kind == "pixels" else ():  # of arrays those are labels, which none asks for
        progress.warn(remark)
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


def refuse_target(path: Path, model: Path, inputs: Sequence[str], overwrite: bool = False) -> None:
    """Raise EdistillError when a result must not go to `path`.

    That is a folder, or a file that is read, by whatever name or link, or that the same command would read the next
    time; and without `overwrite` a file with something in it that is no earlier result.
    """
    if is_stream(path):
        return
    if path.is_dir():
        raise EdistillError(f"{path} is a folder. Name a file to write.")
    if not real(path).parent.is_dir():
        raise EdistillError(f"{path.parent} is no folder, so {path.name} cannot be written there. Make it first.")
    if path.exists():
        target = place(path)
        if any(place(file) == target for file in _read_files(model, inputs)):
            raise EdistillError(f"{path} is one of the files that are read. Name another to write.")
        if not (overwrite or _is_earlier(path)):
            raise EdistillError(
                f"{path} is there, and it is nothing that predict wrote. Name another file, or pass --overwrite to "
                "replace it."
            )
    elif is_image(path.name) and any(real(path).is_relative_to(real(Path(name))) for name in inputs):
        raise EdistillError(f"{path} would be read as an image the next time. Name a file that ends in .csv or .json.")


def _read_files(model: Path, inputs: Sequence[str]) -> Iterator[Path]:
    """The files that exist of those that a prediction reads."""
    for path in (model, model / EXPORTED, *(Path(name.rpartition(":")[0]) for name in inputs)):
        if path.is_file():
            yield path
    for path in map(Path, inputs):
        if path.is_dir():
            (walked,), _ = files_below([path], set())
            files = (Path(folder, name) for folder, names in walked for name in names)
            yield from (file for file in files if is_image(file.name) and file.exists())
        elif path.exists():
            yield path


def _is_earlier(path: Path) -> bool:
    """Whether `formatted` wrote a file, by how it begins; or it is empty, as of mktemp."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start in (b"", b"row\n", b"[]\n"):
        return True
    columns = start.partition(b"\n")[0].decode(errors="replace").split(",")
    for first in (["row", "class", "probability"], ["row", *WHOLE]):
        if columns[: len(first)] == first and {*columns[len(first) :]} <= {*UNCERTAINTIES}:
            return True
    return re.match(rb'\[\s*\{\s*"row": "(?:[^"\\]|\\.)*",\s*"(?:class|mean)": ', start) is not None


def save(path: Path, content: str) -> None:
    """Write a result file, whole or absent, which `refuse_target` let pass."""
    write_output(path, content.encode())
