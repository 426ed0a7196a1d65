"""A student's weights and config in one safetensors file, for use with torch elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.exports import REFERENCE, STUDENT
from ensemble_distill.runs.folder import CONFIG, MADE_FROM
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.jsons import line_of_json
from ensemble_distill.runtime.seals import seal_safetensors, sealed_metadata
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference


def export_safetensors(
    student: Student,
    config: StudentConfig,
    path: Path,
    made_from: MadeFrom | None = None,
    reference: Reference | None = None,
) -> Path:
    """Write `path`, with the config in its metadata and as `config.json` beside it, and load it back.

    Args:
        made_from: the weights and the calibration of its run, which the file records.
        reference: statistics of calibration rows; None without any.

    Raises:
        EdistillError: a weight is not finite, or the file does not read back as it was written.
    """
    tensors = {name: t.detach().clone().contiguous() for name, t in student.state_dict().items()}
    if odd := [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise EdistillError(f"The student's {odd[0]} holds numbers that are not finite. Train it again.")
    record = config.to_json()

    def refuse_other(written: Path) -> None:
        back = load_file(written)
        if back.keys() != tensors.keys() or any(not torch.equal(back[name], t) for name, t in tensors.items()):
            raise EdistillError(f"{path} does not read back as it was written, so it stays as it was. Check the disk.")

    said = {STUDENT: line_of_json(record), **sealed_metadata()}
    if reference is not None:
        said[REFERENCE] = line_of_json(reference.to_json())
    if made_from is not None:
        said[MADE_FROM] = line_of_json(made_from.to_json())
    write_whole(path, seal_safetensors(save(tensors, metadata=said)), check=refuse_other)
    write_whole(path.with_name(CONFIG), config.content())
    return path
