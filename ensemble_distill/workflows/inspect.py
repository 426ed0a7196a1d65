"""`edistill inspect`: what is at a path, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.data import about as data
from ensemble_distill.data import table
from ensemble_distill.data.listing import data_sets, entries, holds_splits
from ensemble_distill.data.patterns import is_pattern
from ensemble_distill.errors import EdistillError
from ensemble_distill.inspecting import part
from ensemble_distill.runs.about_exports import about_program, about_weights
from ensemble_distill.runs.exports import ONNX_PREFIX, onnx_content
from ensemble_distill.runs.folder import ARGS, EXPORTED, is_ensemble_export
from ensemble_distill.runtime.contents import brief
from ensemble_distill.runtime.files import refuse_special
from ensemble_distill.settings import FILE_NAME, Settings, TeacherSettings


def inspect(path: Path, settings: Settings | None = None, *, trust: bool = False) -> dict[str, Any]:
    """Describe a run, a chain, a cache, an exported file, a folder of teachers, or data, as a record to print.

    Args:
        settings: settings with `[teachers]`, for a folder of bare checkpoints.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: there is nothing at `path`, or nothing that edistill knows.
    """
    task = "classification" if settings is None else settings.task
    columns = None if settings is None else settings.data.columns
    if not path.exists() and is_pattern(str(path)):
        return data.about(path, task, columns)
    if not path.exists():
        raise EdistillError(f"There is no {path}. Give a run, a cache, an .onnx file, a folder of teachers, or data.")
    refuse_special(path)
    found = _foreign_graph(path, settings, task) or _own_folder(path) or _made_here(path)
    if found is not None:
        told: dict[str, Any] = brief(found)
        return told
    if (own := part(path)) is not None:
        return own
    if holds_splits(path):
        return {"kind": "folder", "data": data_sets(path, task)}
    runs = _runs(path)
    try:
        return _teachers(path, settings, task, trust) | runs
    except EdistillError as no_teachers:
        if runs:  # for example of several ensembles, which are no teachers together
            return {"kind": "runs", **runs}
        try:
            return data.about(path, task, columns)
        except EdistillError as no_data:
            if table.claims(str(path)):  # a table cannot be anything else
                raise
            if listed := data_sets(path, task):
                return {"kind": "folder", "data": listed}
            raise EdistillError(
                f"{path} is not a run, cache or exported file. As teachers: {no_teachers} As data: {no_data}"
            ) from None


def _own_folder(path: Path) -> dict[str, Any] | None:
    """A folder inside a run or a cache, whatever it holds, or an unfinished training."""
    return part(path) if path.is_dir() else None


def _made_here(path: Path) -> dict[str, Any] | None:
    """A cache, a run, a chain or an exported file; None for what edistill did not make."""
    if (path / MANIFEST).is_file():
        from ensemble_distill.cache import about as cache
        from ensemble_distill.data import decoded_blocks as pictures

        decoded = pictures.about(path)
        return cache.about(path) | ({"decoded": decoded} if decoded else {})
    if is_ensemble_export(path / EXPORTED) and (path / EXPORTED).is_file():
        path = path / EXPORTED
    if path.suffix == ".onnx":
        from ensemble_distill.serving import about as graph

        return graph.about(path)
    if path.suffix == ".pt2" and path.is_file() and (program := about_program(path)) is not None:
        return program
    if (path / ARGS).is_file():
        from ensemble_distill.runs import about as run

        return run.about(path)
    if (path / FILE_NAME).is_file():
        inside = ", ".join(sorted(f"{one.name}/" for one in path.iterdir() if one.is_dir() and one.name[0] not in "._"))
        raise EdistillError(
            f"{path} is a folder to work in, by its {FILE_NAME}. Give a part of it: {inside or 'none yet'}."
        )
    return about_weights(path)


def _foreign_graph(path: Path, settings: Settings | None, task: str) -> dict[str, Any] | None:
    """An ONNX file that edistill did not write; None for its own files, and for any that cannot be read as a member."""
    if path.suffix.lower() != ".onnx" or not path.is_file() or ONNX_PREFIX.encode() in onnx_content(path):
        return None  # edistill's own files are described without torch
    from ensemble_distill.teachers.about_graph import about

    section = TeacherSettings.model_validate({}) if settings is None else settings.teachers
    try:
        return about(path, section, task)
    except EdistillError:
        return None


def _runs(path: Path) -> dict[str, Any]:
    """The runs and chains of a folder, under "runs"; empty if it holds anything else to train from."""
    from ensemble_distill.runs import about as run
    from ensemble_distill.teachers.names import is_weights_file

    inside = [one for one in entries(path) if one.is_dir() or is_weights_file(one)]
    if not inside or not all((one / ARGS).is_file() for one in inside):
        return {}
    return {"runs": {one.name: run.in_short(one) for one in inside}}


def _teachers(path: Path, settings: Settings | None, task: str, trust: bool) -> dict[str, Any]:
    from ensemble_distill.teachers import open_teachers
    from ensemble_distill.teachers.teacher import Context

    section = TeacherSettings.model_validate({}) if settings is None else settings.teachers
    teachers = open_teachers(path, Context(section, trust=trust, task=task))
    return {"kind": "teachers", "members": [teacher.about() for teacher in teachers]}
