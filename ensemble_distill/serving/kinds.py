"""The kinds of exported files, by how their names end: one way to open them all. Only those of torch import it."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.exported_files import refuse_other_content
from ensemble_distill.runs.folder import export_again
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.exported_file import ExportedFile
from ensemble_distill.serving.served import Served


def open_file(path: Path, *, trust: Trust = NOTHING, changed: bool = False, threads: int | None = None) -> ExportedFile:
    """An exported student, ready to run.

    Args:
        trust: whose code may make the body of a file that holds weights alone.
        changed: its user changed the ONNX file since it was exported; see `Served`.
        threads: that one operation of onnxruntime takes; None for all cores. Those of torch are torch's own.

    Raises:
        EdistillError: there is no such file, or edistill did not write it, or not as it is now.
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
