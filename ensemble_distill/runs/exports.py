"""The exported files of runs: which student each was made from, which fit the run as it is now, and the newest."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.calibration import made_from_now
from ensemble_distill.runs.folder import (
    CALIBRATION,
    CONFIG,
    EXPORTED,
    EXPORTS,
    FORMATS,
    MADE_FROM,
    MERGED,
    PROGRAM,
    SAFETENSORS,
    WEIGHTS,
    below,
    content_of,
    export_again,
    run_of,
)
from ensemble_distill.runtime.files import read_whole, sha256_file
from ensemble_distill.runtime.jsons import parse_json
from ensemble_distill.runtime.seals import ONNX_KEY, check, checked_metadata, onnx_metadata

LARGEST = 2**31 - 1  # bytes of an ONNX file, which is a single protobuf message
PROGRAM_CARD = "edistill.json"  # the extra file of a program that holds what ONNX files have in their metadata
PROGRAM_OUTPUTS = "outputs"  # its key for the names of the outputs, in the program's order
STUDENT, REFERENCE = "edistill", "reference"  # keys of safetensors metadata: the config, and calibration rows
WEIGHTS_SHA = "weights_sha256"  # in the config of a folder for timm
ONNX_PREFIX = "edistill."  # of the project's metadata keys in ONNX files


def latest_export(runs: Path) -> Path:
    """The newest `export/model.onnx` in a folder of runs; raises EdistillError if there is none."""
    exports = sorted(below(runs, EXPORTED), key=lambda path: path.stat().st_mtime)
    if not exports:
        raise EdistillError(f"{runs} holds no exported student. Run edistill export --onnx, or pass --model FILE.")
    return exports[-1]


class ForeignError(ValueError):
    """A file that edistill did not write."""


# --- the student that it was made from --------------------------------------------------------------------------


def made_from(export: Path) -> MadeFrom | None:
    """The student that an exported file was made from, read without its graph; None if the file does not say.

    Raises:
        EdistillError: the file is damaged.
    """
    try:
        if export.suffix == ".onnx":
            content = onnx_content(export)
            refuse_damaged_onnx(export, content)
            said = onnx_metadata(content, f"{ONNX_PREFIX}{MADE_FROM}")
        elif export.name == MERGED:
            return _made_from_merged(export)
        elif export.suffix == Path(PROGRAM).suffix:
            said = program_metadata(export).get(f"{ONNX_PREFIX}{MADE_FROM}")
        else:
            said = checked_metadata(read_whole(export)).get(MADE_FROM)
        return None if said is None else MadeFrom.from_json(parse_json(said))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged_export(export, error) from None


def _made_from_merged(folder: Path) -> MadeFrom | None:
    """The student that a folder for timm was made from; raises ValueError if its weights have changed."""
    config, weights = parse_json(content_of(folder / CONFIG) or b"{}"), folder / SAFETENSORS
    if not weights.is_file() or config.get(WEIGHTS_SHA) != sha256_file(weights):
        raise ValueError(f"its {SAFETENSORS} is not what was written")
    return MadeFrom.from_json(config[MADE_FROM])


def damaged_export(export: Path, error: Exception | str) -> EdistillError:
    """The error for a damaged exported file."""
    return EdistillError(f"{export} is damaged ({error}). Export the run again: {export_again(export)}.")


def program_metadata(export: Path) -> dict[str, str]:
    """The metadata of an exported program, read without torch.

    Raises:
        ForeignError: edistill did not write it.
        ValueError: it is damaged.
    """
    try:
        with ZipFile(export) as archive:
            if any(one.compress_type != ZIP_STORED for one in archive.infolist()):
                raise ValueError("it is compressed, as torch writes none")
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"its {bad} is not what was written")
            name = next((one for one in archive.namelist() if one.endswith(f"/{PROGRAM_CARD}")), None)
            if name is None:
                raise ForeignError(f"it has no {PROGRAM_CARD}")
            said = parse_json(archive.read(name))
    except (BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"it is not an archive: {error}") from None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError(f"its {PROGRAM_CARD} holds no texts")
    return said


def onnx_content(export: Path) -> bytes:
    """The bytes of an ONNX file; raises EdistillError if it is not a regular file, or larger than an ONNX file can
    be."""
    try:
        return read_whole(export, LARGEST)
    except ValueError as error:
        raise EdistillError(f"{export} is not an ONNX file: {error}. Give an exported one.") from None


def refuse_damaged_onnx(export: Path, content: bytes) -> None:
    """Raise EdistillError if the bytes of an ONNX file have changed since they were sealed."""
    try:
        check(content, onnx_metadata(content, ONNX_KEY), None)
    except ValueError as error:
        raise EdistillError(
            f"{damaged_export(export, error)} If you changed the file yourself, by quantizing it for instance, pass "
            "--changed to edistill predict."
        ) from None


# --- against the run as it is now -------------------------------------------------------------------------------


def refuse_stale(export: Path, said: MadeFrom | None) -> None:
    """Raise EdistillError if an exported file made from `said` lies in a run that has other weights now."""
    run = run_of(export)
    if run is None or said is None:
        return
    now = sha256_file(run / WEIGHTS)
    if said.weights != now:
        raise EdistillError(_of_other_weights(export, said.weights, run, now))


def calibrated_since(export: Path, said: MadeFrom | None) -> str | None:
    """A message if an exported file differs from its run in the calibration; None if it does not, or lies in no run."""
    run = run_of(export)
    return None if run is None or not _is_stale(export, said, run) else _calibrated_otherwise(export, run)


def stale(export: Path) -> str | None:
    """A message if an exported file was made from another state of its run than the current one.

    None if it is up to date, lies in no run, or one of the two cannot be read, which is reported where it is opened.
    """
    run = run_of(export)
    try:
        if run is None or not _is_stale(export, said := made_from(export), run):
            return None
        now = sha256_file(run / WEIGHTS)
    except EdistillError:
        return None
    if said is not None and said.weights != now:
        return _of_other_weights(export, said.weights, run, now)
    return _calibrated_otherwise(export, run)


def stale_exports(run: Path) -> tuple[Path, ...]:
    """The exported files of a run that are damaged, or were made from another state of it than the current one."""
    return tuple(file for file in exports_of(run) if _is_stale_or_damaged(file, run))


def exports_of(run: Path) -> list[Path]:
    """The exported files in a run, including a folder for timm."""
    return [file for name in FORMATS if (file := run / EXPORTS / name).is_file() or (file / CONFIG).is_file()]


def _of_other_weights(export: Path, then: str, run: Path, now: str) -> str:
    return (
        f"{export} was made of weights {then[:12]}…, and those of {run} are {now[:12]}…. Export again: "
        f"{export_again(export)}"
    )


def _calibrated_otherwise(export: Path, run: Path) -> str:
    return (
        f"{export} is stale: {run} is calibrated otherwise than when it was made. Export again: {export_again(export)}"
    )


def _is_stale_or_damaged(file: Path, run: Path) -> bool:
    try:
        said = made_from(file)
    except EdistillError:
        return True
    if said is None and not (run / CALIBRATION).is_file():  # the file may apply a removed calibration
        return True
    return _is_stale(file, said, run)


def _is_stale(file: Path, said: MadeFrom | None, run: Path) -> bool:
    if said is None:  # written by version 0.1.0, which did not record the student
        calibration = run / CALIBRATION
        return calibration.is_file() and file.stat().st_mtime_ns < calibration.stat().st_mtime_ns
    return said != made_from_now(run)
