"""Where a result may be written: neither over a file that is read, nor over one that is not an earlier result."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ensemble_distill.data.image_folder import is_image
from ensemble_distill.data.walk import files_below, place
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.folder import EXPORTS
from ensemble_distill.runtime.files import is_stream, real
from ensemble_distill.serving.predictions import MARK, PARQUET
from ensemble_distill.serving.wishes import COLUMNS
from ensemble_distill.tasks import open_task, task_names
from ensemble_distill.tasks.figures import UNCERTAINTIES


def refuse_target(path: Path, model: Path, inputs: Sequence[str], overwrite: bool = False) -> None:
    """Raise EdistillError if a result must not be written to `path`.

    That holds for a folder, for a file that is read, under any name or link, and for a name that the same command would
    read the next time. Without `overwrite` it also holds for a nonempty file that is not an earlier result.
    """
    if is_stream(path):
        return
    if path.is_dir():
        raise EdistillError(f"{path} is a folder. Name a file to write.")
    if not real(path).parent.is_dir():
        raise EdistillError(f"{path.parent} is not a folder, so {path.name} cannot be written there. Make it first.")
    if not os.access(real(path).parent, os.W_OK):
        raise EdistillError(f"{path}: nothing may be written to {real(path).parent}. Name a file in another folder.")
    if path.exists():
        target = place(path)
        if any(place(file) == target for file in _read_files(model, inputs)):
            raise EdistillError(f"{path} is one of the files that are read. Name another to write.")
        if not (overwrite or is_earlier(path)):
            raise EdistillError(
                f"{path} is there, and it is nothing that predict wrote. Name another file, or pass --overwrite to "
                "replace it."
            )
    elif is_image(path.name) and any(real(path).is_relative_to(real(Path(name))) for name in inputs):
        raise EdistillError(f"{path} would be read as an image the next time. Name a file that ends in .csv or .json.")


def _read_files(model: Path, inputs: Sequence[str]) -> Iterator[Path]:
    """The existing files that a prediction reads."""
    exported = [file for place in (model, model / EXPORTS) if place.is_dir() for file in place.iterdir()]
    for path in (model, *exported, *(Path(name.rpartition(":")[0]) for name in inputs)):
        if path.is_file():
            yield path
    for path in map(Path, inputs):
        if path.is_dir():
            (walked,), _ = files_below([path], set())
            files = (Path(folder, name) for folder, names in walked for name in names)
            yield from (file for file in files if is_image(file.name) and file.exists())
        elif path.exists():
            yield path


def is_earlier(path: Path) -> bool:
    """Whether a file is an earlier result, judged by its beginning, or is empty, as mktemp makes it."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
        if start.startswith(PARQUET):  # its metadata are at the end of the file
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            return MARK.encode() in file.read()
    if start in (b"", b"row\n", b"[]\n"):
        return True
    predicted = [open_task(key).predicted for key in task_names()]
    header = next(csv.reader([start.partition(b"\n")[0].decode(errors="replace")]), [])
    words = {column.partition(" ")[0] for column in header[1:]} - {*UNCERTAINTIES, *COLUMNS}  # a name may follow
    if header[:1] == ["row"] and any(words == {*names} for names in predicted):
        return True
    second = "|".join(names[0] for names in predicted).encode()
    return re.match(rb'(?:\[\s*)?\{\s*"row": "(?:[^"\\]|\\.)*",\s*"(?:' + second + rb')[ "]', start) is not None
