"""Files and folders inside a run, and a run whose training is unfinished."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ensemble_distill.inspecting.listed import listed
from ensemble_distill.runs.exported_files import taken
from ensemble_distill.runs.exports import made_from, stale
from ensemble_distill.runs.folder import (
    ARGS,
    CALIBRATION,
    CHECKPOINT,
    CONFIG,
    EVALUATIONS,
    EXPORTS,
    LOGS,
    MERGED,
    SUMMARY,
    WEIGHTS,
    export_again,
    go_on,
)
from ensemble_distill.runtime.files import DOCUMENT, read_whole
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import WRITTEN_BY, checked_metadata, read_sealed_json
from ensemble_distill.runtime.words import shell

DEEPEST = 3  # folders between a file and its run: evaluations/shifts/
FOLDERS = {EVALUATIONS: "evaluations", EXPORTS: "exported files", LOGS: "logs"}
Told = dict[str, Any]


def of_run(path: Path) -> Told | None:
    """The description of a path below a run, or of a run without weights; None for any other path."""
    if _is_run(path):
        return None if (path / WEIGHTS).is_file() else _unfinished(path)
    run = next((folder for folder in list(path.absolute().parents)[:DEEPEST] if _is_run(folder)), None)
    if run is None:
        return None
    named = path.absolute().relative_to(run).as_posix()
    shown = Path(*path.parts[: -len(Path(named).parts)]) if len(path.parts) > len(Path(named).parts) else Path(run.name)
    if path.is_dir():
        return _folder(path, named, shown)
    tell = FILES.get(named)
    return None if tell is None else {**tell(path, shown), "next": f"edistill inspect {shell(shown)}"}


def _is_run(folder: Path) -> bool:
    return (folder / ARGS).is_file() and (folder / CONFIG).is_file()


def _folder(path: Path, named: str, run: Path) -> Told | None:
    what = FOLDERS.get(named.split("/", maxsplit=1)[0])
    if what is None:
        return None
    of = taken(path, lambda told: None) if named == EXPORTS else None
    told = {"what": f"{what} of {run}", **listed(path), "next": f"edistill inspect {shell(of or run)}"}
    return told if named != f"{EXPORTS}/{MERGED}" else {**told, **_merged(path, told["facts"], run)}


def _merged(path: Path, facts: Mapping[str, Any], run: Path) -> Told:
    """What differs in the description of a folder for timm."""
    made, why = made_from(path), stale(path)
    of = {} if made is None else {"made from": f"weights {made.weights[:12]}…"}
    old = {} if why is None else {"stale": why}
    again = f"edistill inspect {shell(run)}" if why is None else export_again(path)
    return {"what": f"one plain timm model of {run}, for create_model", "facts": {**of, **old, **facts}, "next": again}


def _unfinished(run: Path) -> Told:
    from ensemble_distill.runs.config import StudentConfig  # imports torch, which the rest of this module does without

    config = StudentConfig.load(run)
    state = _state(run / CHECKPOINT) if (run / CHECKPOINT).is_file() else {"saved": "nothing yet"}
    return {
        "what": "a training that is not finished",
        "facts": {"method": config.provenance.method, **state},
        "next": go_on(run),
    }


def _checkpoint(path: Path, run: Path) -> Told:
    return {"what": f"the checkpoint of {run}, from which its training goes on", "facts": _state(path)}


def _state(path: Path) -> Mapping[str, Any]:
    state = dict(parse_json(checked_metadata(read_whole(path))["state"])["dict"])
    table = [dict(row["dict"]) for row in state["table"]["list"]]
    last = {name: value for name, value in (table[-1] if table else {}).items() if name not in ("seconds", "stage")}
    return {"saved at step": state["step"], "stage": state["stage"] + 1, "epochs done": len(table), **last}


def _summary(path: Path, run: Path) -> Told:
    header, *rows = list(csv.reader(io.StringIO(read_whole(path, DOCUMENT).decode())))
    some = [*rows[:3], *rows[-3:]] if len(rows) > 6 else rows
    return {
        "what": f"the figures of each epoch of {run}",
        "facts": {"epochs": len(rows)},
        "columns": header,
        "rows": some,
    }


def _calibration(path: Path, run: Path) -> Told:
    record = dict(read_sealed_json(path)[0])
    if "temperature" not in record:
        raise ValueError("it is not a calibration")
    weights, version = record.pop("weights", "?"), record.pop(WRITTEN_BY, "?")
    return {
        "what": f"what the predictions of {run} are corrected by",
        "facts": {**record, "of weights": f"{weights[:12]}…", "made with": f"edistill {version}"},
    }


def _student(path: Path, run: Path) -> Told:
    return {"what": f"the student of {run}", "facts": {"holds": CONTENT[path.name], "bytes": path.stat().st_size}}


def _exported(path: Path, run: Path) -> Told:
    facts = {"holds": CONTENT[path.name], "bytes": path.stat().st_size}
    return {"what": f"beside the exported files of {run}", "facts": facts}


CONTENT = {"README.md": "the model card", WEIGHTS: "its weights", CONFIG: "what it is made of, and where it came from"}
FILES: Mapping[str, Callable[[Path, Path], Told]] = {
    CHECKPOINT: _checkpoint,
    SUMMARY: _summary,
    CALIBRATION: _calibration,
    WEIGHTS: _student,
    CONFIG: _student,
    f"{EXPORTS}/{CONFIG}": _exported,
    f"{EXPORTS}/README.md": _exported,
}
