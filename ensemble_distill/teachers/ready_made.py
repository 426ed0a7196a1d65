"""Ready-made outputs: an `.npz` with an array a split, or a folder with an .npy, .csv or .parquet a split.

Such a member answers the rows of its splits and nothing else: neither views of them nor distorted rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import ROUNDING, Answering, Rows
from ensemble_distill.teachers.labels import order_by_labels
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.outputs import Array, Outputs, holds_outputs, in_archive, in_folder, is_split, of_folder
from ensemble_distill.teachers.remarked import Remarked
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.whole_files import PIECE, refuse_changed

MODEL = "ready-made outputs"  # what builds such a member, in its record
OTHERS = ("args.yaml", "config.json")  # what makes a folder another kind's


def claims(path: Path) -> bool:
    """An `.npz`, or a folder, with outputs of a split; see `holds_outputs`."""
    if path.name.lower().endswith(".npz"):
        return path.is_file() and holds_outputs(path)
    if not path.is_dir() or any((path / name).exists() for name in OTHERS):
        return False
    return any(holds_outputs(file) for _, file in in_folder(path))


def load(path: Path, context: Context) -> Teacher:
    """Raises EdistillError for arrays that belong to no split, and for none."""
    outputs = _outputs(path)
    member = Member(
        name=member_name(path),
        sha256=_digest(outputs.files),
        **context.stated,
        class_order=order_by_labels(context, member_name(path), outputs.names(), outputs.named),
        model=MODEL,
    )
    opens = partial(_open, member, path)
    return Teacher.asked_only(member, "a table of ready-made outputs", opens, Origin(path.name))


def _outputs(path: Path) -> Outputs:
    return in_archive(path) if path.is_file() else of_folder(path)


def _digest(files: Sequence[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _open(member: Member, path: Path, task: type[Task]) -> Answering:
    outputs = _outputs(path)
    refuse_changed(path, member.sha256, _digest(outputs.files))
    return Table(task, member, outputs)


class Table:
    """See `Answering`. It answers row numbers."""

    module, wants, fineness = None, None, ROUNDING

    def __init__(self, task: type[Task], member: Member, outputs: Outputs) -> None:
        self.task, self.member, self._outputs = task, member, outputs
        self._held: dict[str, Array] = {}
        self._checked = Remarked(task, member)

    @property
    def remark(self) -> str | None:
        return self._checked.remark

    def to(self, device: torch.device) -> None:
        """It stands nowhere."""

    def meets(self, split: str, rows: Rows) -> None:
        """Raises EdistillError: it has no outputs of the split, or of other rows; or one of them is no number."""
        if split in self._held:
            return
        name = self.member.name
        if split not in self._outputs.splits:
            what = "distorted rows" if not is_split(split) else f"data.{split.replace('/', '.')}"
            raise EdistillError(
                f"Member {name} has outputs of {first_few(sorted(self._outputs.splits), 6)} in {self._outputs.path}, "
                f"and cannot be asked about {split}. Write its outputs of that too, or leave {what} out."
            )
        values = self._outputs.read(split, rows)
        whole = np.isfinite(values).all(axis=1)
        if not whole.all():
            key = f"data.{split.replace('/', '.')}"
            raise EdistillError(
                f"Member {name} has no finite outputs at {int((~whole).sum()):,} of {len(values):,} rows of {split}, "
                f"row {int(whole.argmin())} first, in {self._outputs.path}. A member answers every row of a split, and "
                f"out-of-fold outputs do not: ask the model about those too, or leave the rows out of {key}."
            )
        self._held[split] = values

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        return self._checked.answers(self._held[split][list(rows)], split, rows)
