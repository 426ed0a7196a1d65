"""`edistill inspect`: what a path is and what it holds, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.data import open_inputs
from ensemble_distill.data.listing import data_sets, entries, holds_splits
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.folder import ARGS, EVALUATIONS, EXPORTS, MADE_FROM
from ensemble_distill.runtime.files import read_whole, refuse_special
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import checked_metadata, read_safetensors_metadata
from ensemble_distill.settings import FILE_NAME, Settings

if TYPE_CHECKING:
    from ensemble_distill.runs.chain import Chain
    from ensemble_distill.teachers.teacher import Teacher


def inspect(path: Path, settings: Settings | None = None, *, trust: bool = False) -> dict[str, Any]:
    """A run, a chain, a cache, an exported file, a folder of teachers, or data, as a record to print.

    Args:
        settings: what `[teachers]` says, for a folder of bare checkpoints.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: there is nothing at `path`, or nothing that edistill knows.
    """
    if not path.exists():
        raise EdistillError(f"There is no {path}. Give a run, a cache, an .onnx file, a folder of teachers, or data.")
    refuse_special(path)
    if (path / MANIFEST).is_file():
        return _cache(path)
    if path.suffix == ".onnx":
        return _onnx(path)
    if (path / ARGS).is_file():
        return _trained(path)
    if (config := _exported(path)) is not None:
        return config
    if (path / FILE_NAME).is_file():
        inside = ", ".join(sorted(f"{one.name}/" for one in path.iterdir() if one.is_dir() and one.name[0] not in "._"))
        raise EdistillError(
            f"{path} is a folder to work in, by its {FILE_NAME}. Give a part of it: {inside or 'none yet'}."
        )
    task = settings.task if settings is not None else "classification"
    if holds_splits(path):
        return {"kind": "folder", "data": data_sets(path, task)}
    runs = _runs(path)
    try:
        return _teachers(path, settings, task, trust) | runs
    except EdistillError as no_teachers:
        if runs:  # of several ensembles, say
            return {"kind": "runs", **runs}
        try:
            return _data(path, task)
        except EdistillError as no_data:
            if found := data_sets(path, task):
                return {"kind": "folder", "data": found}
            raise EdistillError(
                f"{path} is no run, cache or exported file. As teachers: {no_teachers} As data: {no_data}"
            ) from None


def _cache(path: Path) -> dict[str, Any]:
    manifest = Manifest.load(path)
    return {
        "kind": "cache",
        "task": manifest.task,
        "classes": list(manifest.classes),
        "dtype": manifest.dtype,
        "members": [member.to_json() for member in manifest.members],
        "splits": {name: {**vars(split), "views": manifest.views(name)} for name, split in manifest.splits.items()},
        "caching": dict(manifest.caching),
        **({"pushed": manifest.told_pushed()} if manifest.pushed else {}),
        "bytes": sum(file.stat().st_size for file in (path / "records").rglob("*.npy")),
    }


def _trained(path: Path) -> dict[str, Any]:
    """A run or a chain of them."""
    from ensemble_distill.runs.chain import Chain, is_chain
    from ensemble_distill.runs.evaluations import stale_evaluations
    from ensemble_distill.runs.exports import stale_exports
    from ensemble_distill.runs.run import Run

    if is_chain(path):
        return _chain(Chain.open(path))
    run = Run.open(path)
    files = sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
    stale = (*stale_exports(path), *stale_evaluations(path, {"student": run.made_from}))
    return {"kind": "run", **run.config.to_json(), "files": files, **_stale(path, stale)}


def _runs(path: Path) -> dict[str, Any]:
    """What the runs and chains of a folder are, under "runs"; nothing where it holds anything else to train from."""
    from ensemble_distill.teachers.names import is_weights_file

    inside = [one for one in entries(path) if one.is_dir() or is_weights_file(one)]
    if not inside or not all((one / ARGS).is_file() for one in inside):
        return {}
    return {"runs": {one.name: _in_short(one) for one in inside}}


def _in_short(folder: Path) -> dict[str, Any]:
    """A run or a chain in a few facts; "problem" where it cannot be opened."""
    try:
        record = _trained(folder)
    except EdistillError as error:
        return {"problem": str(error)}
    stale = {"stale": record["stale"]} if "stale" in record else {}
    if record["kind"] == "chain":
        documents = sorted(file.stem for file in (folder / EVALUATIONS).glob("*.json"))
        predictions, of, exported = len(record["generations"]), "generation", []
    else:
        documents = [Path(name).stem for name in record["files"] if Path(name).match(f"{EVALUATIONS}/*.json")]
        predictions, of = record["student"]["heads"], "head"
        exported = [Path(name).name for name in record["files"] if Path(name).match(f"{EXPORTS}/model.*")]
    return {
        "method": record["method"]["name"],
        "predictions": predictions,
        "of": of,
        "evaluated": documents,
        "exported": exported,
        **stale,
    }


def _stale(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What is in the folder of other weights or another calibration than it has now; absent where nothing is."""
    return {"stale": [str(file.relative_to(folder)) for file in files]} if files else {}


def _chain(chain: Chain) -> dict[str, Any]:
    from ensemble_distill.runs.evaluations import stale_evaluations

    first = chain.runs[0]
    stale = stale_evaluations(chain.folder, {run.folder.name: run.made_from for run in chain.runs})
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


def _onnx(path: Path) -> dict[str, Any]:
    from ensemble_distill.serving.served import Served

    served = Served(path)
    card = served.card
    return {
        "kind": "onnx",
        "task": card.task.key,
        "method": card.method,
        "version": card.version,
        "classes": list(card.task.names),
        "input": {
            "name": served.input,
            "kind": card.kind,
            "shape": list(card.shape),
            "preprocessing": card.preprocessing.to_json() if card.preprocessing else None,
        },
        "outputs": list(served.outputs),
        "members": [member.to_json() for member in card.members],
        **({} if card.made_from is None else {"made_from": card.made_from.to_json()}),
        "bytes": path.stat().st_size,
    }


def _exported(path: Path) -> dict[str, Any] | None:
    """An exported safetensors file, by the config it carries."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    from ensemble_distill.runs.exports import damaged_export
    from ensemble_distill.runs.folder import run_of

    try:
        if "edistill" not in read_safetensors_metadata(path):
            return None
    except ValueError as error:
        if run_of(path) is not None:
            raise damaged_export(path, error) from None
        return None
    try:
        content = read_whole(path)
        metadata = checked_metadata(content)
        config = parse_json(metadata["edistill"])
        made_from = parse_json(metadata.get(MADE_FROM, "null"))
        if not isinstance(config, dict):
            raise ValueError("its config is no table")
    except ValueError as error:
        raise damaged_export(path, error) from None
    told = {} if made_from is None else {MADE_FROM: made_from}
    return {"kind": "safetensors", **config, **told, "bytes": len(content)}


def _teachers(path: Path, settings: Settings | None, task: str, trust: bool) -> dict[str, Any]:
    from ensemble_distill.settings import TeacherSettings
    from ensemble_distill.teachers import open_teachers
    from ensemble_distill.teachers.teacher import Context

    section = settings.teachers if settings is not None else TeacherSettings.model_validate({})
    teachers = open_teachers(path, Context(section, trust=trust, task=task))
    return {"kind": "teachers", "members": [_member(teacher) for teacher in teachers]}


def _member(teacher: Teacher) -> dict[str, Any]:
    """Its facts, and where its weights stand."""
    origin = teacher.origin
    return teacher.member.to_json() | ({} if origin is None else {"weights": origin.to_json()})


def _data(path: Path, task: str) -> dict[str, Any]:
    source = open_inputs([str(path)], task)
    source.item(0)  # raises where what is called a picture is none
    return {
        "kind": "data",
        "rows": len(source),
        "holds": source.kind,
        "classes": None if source.classes is None else list(source.classes),
        "labels": source.labels is not None,
        "digest": source.digest,
        "digest_scope": source.digest_scope,
        **({"remarks": list(source.remarks)} if source.remarks else {}),
    }
