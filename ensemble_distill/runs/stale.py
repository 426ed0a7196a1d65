"""Whether what was made of a run is of the run as it is now: exports and evaluations say of which weights they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.belonging import CALIBRATION, EXPORTS, MADE_FROM, WEIGHTS, made_from_now
from ensemble_distill.runtime.files import read_whole, sha256_file
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import checked_metadata, read_sealed_json
from ensemble_distill.serving import served as serving

FORMATS = {"model.onnx": "--onnx", "model.safetensors": "--safetensors"}
EVALUATIONS = "evaluations"  # a run's or a chain's folder of documents
FIGURES_OF_ROWS = "figures_of_rows"  # in a document: the sha256 of each .npz that belongs to it


def refuse_stale(export: Path, said: MadeFrom | None) -> None:
    """Raise EdistillError when an exported file, which says what it was made from, stands in a run of other weights."""
    run = run_of(export)
    if run is None or said is None:
        return
    now = sha256_file(run / WEIGHTS)
    if said.weights != now:
        raise EdistillError(
            f"{export} was made of weights {said.weights[:12]}…, and those of {run} are {now[:12]}…. Export again: "
            f"{_again(export, run)}"
        )


def calibrated_since(export: Path, said: MadeFrom | None) -> str | None:
    """What to tell of an exported file whose run is calibrated otherwise than it was then; None where it is not."""
    run = run_of(export)
    if run is None or said is None or said == made_from_now(run):
        return None
    return f"{run} is calibrated otherwise than when {export} was made. Export again: {_again(export, run)}"


def stale_exports(run: Path) -> tuple[Path, ...]:
    """The exported files of a run that are not of it as it is now, or are damaged."""
    return tuple(file for name in FORMATS if (file := run / EXPORTS / name).is_file() and _is_stale(file, run))


def stale_evaluations(folder: Path, students: Mapping[str, MadeFrom]) -> tuple[Path, ...]:
    """The documents in a run or a chain that are of other students than there are now, or are damaged.

    Args:
        students: what is there, by the names that documents give it.
    """
    return tuple(file for file in _documents(folder) if not _is_of(file, students))


def made_from(export: Path) -> MadeFrom | None:
    """Of which student an exported file was made; None where it does not say.

    Raises:
        EdistillError: it is damaged.
    """
    if export.suffix == ".onnx":
        return serving.made_from(export)
    try:
        said = checked_metadata(read_whole(export)).get(MADE_FROM)
        return None if said is None else MadeFrom.from_json(parse_json(said))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged_export(export, error) from None


def damaged_export(export: Path, error: Exception) -> EdistillError:
    """What is told of an exported safetensors file that was damaged."""
    return EdistillError(f"{export} is damaged ({error}). Export the run again: edistill export --safetensors.")


def run_of(export: Path) -> Path | None:
    """The run in whose folder an exported file stands; None where it stands elsewhere."""
    folder = export.absolute().parent
    return export.parent.parent if folder.name == EXPORTS and (folder.parent / WEIGHTS).is_file() else None


def _again(export: Path, run: Path) -> str:
    return f"edistill export {run} {FORMATS.get(export.name, '--onnx')}"


def _is_stale(file: Path, run: Path) -> bool:
    try:
        said = made_from(file)
    except EdistillError:
        return True
    if said is None:  # version 0.1.0 did not say
        calibration = run / CALIBRATION
        return not calibration.is_file() or file.stat().st_mtime_ns < calibration.stat().st_mtime_ns
    return said != made_from_now(run)


def _documents(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / EVALUATIONS).glob("*.json"))
    yield from sorted((folder / EVALUATIONS / "shifts").glob("*.json"))


def _is_of(document: Path, students: Mapping[str, MadeFrom]) -> bool:
    try:
        record, sealed = read_sealed_json(document)
        if not sealed:  # version 0.1.0 did not say
            return True
        named = {name: MadeFrom.from_json(said) for name, said in record[MADE_FROM].items()}
        rows = record.get(FIGURES_OF_ROWS, {})
        return all(students.get(name) == said for name, said in named.items()) and all(
            sha256_file(document.parent / name) == digest for name, digest in rows.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EdistillError):
        return False
