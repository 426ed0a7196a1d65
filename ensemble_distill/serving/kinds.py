"""The kinds of exported files by their suffixes, with one function to open them all; only torch's kinds import
torch."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.exported_files import refuse_other_content
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.exported_file import ExportedFile
from ensemble_distill.serving.served import Served


def open_file(path: Path, *, trust: Trust = NOTHING, changed: bool = False, threads: int | None = None) -> ExportedFile:
    """Open an exported student.

    Args:
        trust: whose code may make the body, for a file that holds only weights.
        changed: whether the user changed the ONNX file after its export; see `Served`.
        threads: threads per operation of onnxruntime; None for all cores. torch keeps its own number.

    Raises:
        EdistillError: the file does not exist, edistill did not write it, or it has changed since.
    """
    if not path.is_file():
        raise EdistillError(f"There is no {path}. Run {export_again(path)}, or name another file.")
    refuse_other_content(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Served(path, changed=changed, threads=threads)
    if changed:
        raise EdistillError(f"--changed is of ONNX files, and {path} is none. Leave it out.")
    if suffix == ".pt2":
        from ensemble_distill.serving.program import ProgramFile

        return ProgramFile(path, trust)
    from ensemble_distill.serving.weights import WeightsFile

    return WeightsFile(path, trust)
