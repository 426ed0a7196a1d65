"""What `inspect` reports of exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_distill.runs.exports import ONNX_PREFIX, REFERENCE, STUDENT, damaged_export, program_metadata, stale
from ensemble_distill.runs.folder import MADE_FROM, run_of
from ensemble_distill.runtime.files import read_whole
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import checked_metadata, read_safetensors_metadata
from ensemble_distill.tasks.reference import Reference


def about_program(export: Path) -> dict[str, Any] | None:
    """The facts of an exported program; None for any other file."""
    try:
        said = {name.removeprefix(ONNX_PREFIX): parse_json(text) for name, text in program_metadata(export).items()}
        said |= _told_reference(said.pop(REFERENCE, None))
    except ValueError as error:
        if run_of(export) is not None:
            raise damaged_export(export, error) from None
        return None
    said["kind_of_rows"] = said.pop("kind")
    return {"kind": "program", **said, **about_stale(export), "bytes": export.stat().st_size}


def about_weights(path: Path) -> dict[str, Any] | None:
    """The facts of an exported safetensors file, from the config in its metadata; None for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        if STUDENT not in read_safetensors_metadata(path):
            return None
    except ValueError as error:
        if run_of(path) is not None:
            raise damaged_export(path, error) from None
        return None
    try:
        content = read_whole(path)
        metadata = checked_metadata(content)
        config = parse_json(metadata[STUDENT])
        made_from = parse_json(metadata.get(MADE_FROM, "null"))
        known = _told_reference(parse_json(metadata.get(REFERENCE, "null")))
        if not isinstance(config, dict):
            raise ValueError("its config is not a table")
    except ValueError as error:
        raise damaged_export(path, error) from None
    told = {} if made_from is None else {MADE_FROM: made_from}
    return {"kind": "safetensors", **config, **known, **told, **about_stale(path), "bytes": len(content)}


def _told_reference(record: Any) -> dict[str, Any]:
    """The calibration rows that a file holds, under "reference"; empty if it holds none. Raises ValueError if they are
    invalid."""
    return {} if record is None else {REFERENCE: Reference.from_json(record).told()}


def about_stale(export: Path) -> dict[str, str]:
    """Why an exported file is stale, under "stale"; empty if it is not."""
    told = stale(export)
    return {} if told is None else {"stale": told}
