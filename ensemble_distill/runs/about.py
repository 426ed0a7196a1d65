"""What `inspect` reports of runs and chains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.args import limit_of
from ensemble_distill.runs.chain import Chain, is_chain
from ensemble_distill.runs.evaluations import stale_evaluations
from ensemble_distill.runs.exports import stale_exports
from ensemble_distill.runs.folder import EVALUATIONS, exported_in
from ensemble_distill.runs.run import Run


def about(path: Path) -> dict[str, Any]:
    """The facts of a run or a chain; raises EdistillError if it is unfinished or damaged."""
    if is_chain(path):
        return _chain(Chain.open(path))
    run = Run.open(path)
    files = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
    stale = (*stale_exports(path), *stale_evaluations(path, {"student": run.made_from}))
    limit = limit_of(path)
    tried = {} if limit is None else {"limit": limit}
    return {"kind": "run", **run.config.to_json(), **tried, "files": files, **_stale(path, stale)}


def in_short(folder: Path) -> dict[str, Any]:
    """A few facts of a run or a chain; "problem" alone if it cannot be opened."""
    try:
        record = about(folder)
    except EdistillError as error:
        return {"problem": str(error)}
    stale = {"stale": record["stale"]} if "stale" in record else {}
    if record["kind"] == "chain":
        documents = sorted(file.stem for file in (folder / EVALUATIONS).glob("*.json"))
        predictions, of, exported = len(record["generations"]), "generation", []
    else:
        documents = [Path(name).stem for name in record["files"] if Path(name).match(f"{EVALUATIONS}/*.json")]
        predictions, of = record["student"]["heads"], "head"
        exported = exported_in(record["files"])
    return {
        "method": record["method"]["name"],
        "predictions": predictions,
        "of": of,
        "evaluated": documents,
        "exported": exported,
        **stale,
    }


def _stale(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The files made from other weights or another calibration than the folder has now, under "stale"; empty if there
    are none."""
    return {"stale": [str(file.relative_to(folder)) for file in files]} if files else {}


def _chain(chain: Chain) -> dict[str, Any]:
    first = chain.runs[0]
    stale = list(stale_evaluations(chain.folder, {run.folder.name: run.made_from for run in chain.runs}))
    for run in chain.runs:
        stale += (*stale_exports(run.folder), *stale_evaluations(run.folder, {"student": run.made_from}))
    return {
        "kind": "chain",
        "task": first.architecture.task.key,
        "method": {"name": first.provenance.method, "options": dict(first.provenance.options)},
        "teachers": [member.to_json() for member in chain.teachers],
        "generations": {
            run.folder.name: {
                "student": run.architecture.body_json(),
                "learned_from": [member.name for member in run.provenance.members],
                "sha256": run.digest,
            }
            for run in chain.runs
        },
        **_stale(chain.folder, stale),
    }
