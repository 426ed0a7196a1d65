"""Ready-made outputs: an `.npz` with an array a split, or a folder with an .npy, .csv or .parquet a split.

The member answers the rows of its splits and no others. It answers no distorted rows, and views only if its outputs are
of exactly these views, (V, N, ·). A row whose numbers are all NaN is not answered: in out-of-fold outputs, for example,
a row that the member was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import EdistillError, first_few
from ensemble_distill.facts import Member
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.teachers.answering import ROUNDING, Answering, Rows, in_view
from ensemble_distill.teachers.labels import order_by_labels
from ensemble_distill.teachers.names import member_name
from ensemble_distill.teachers.outputs import (
    Array,
    Outputs,
    holds_outputs,
    in_archive,
    in_folder,
    is_split,
    of_folder,
    refuse_labels,
)
from ensemble_distill.teachers.remarked import Remarked
from ensemble_distill.teachers.teacher import Context, Origin, Teacher
from ensemble_distill.teachers.viewed import Viewed, unsaid
from ensemble_distill.teachers.whole_files import PIECE, refuse_changed

MODEL = "ready-made outputs"  # `Member.model` of this kind
OTHERS = ("args.yaml", "config.json")  # files that mark a folder of another kind


def claims(path: Path) -> bool:
    """Whether `path` is an `.npz` or a folder with outputs of a split; see `holds_outputs`."""
    if path.name.lower().endswith(".npz"):
        return path.is_file() and holds_outputs(path)
    if not path.is_dir() or any((path / name).exists() for name in OTHERS):
        return False
    return any(holds_outputs(file) for _, file in in_folder(path))


def load(path: Path, context: Context) -> Teacher:
    """Load a member; raises EdistillError if an array belongs to no split, there is none, or it may be data."""
    outputs = outputs_of(path)
    refuse_labels(outputs, open_task(context.task), context.names)
    member = Member(
        name=member_name(path),
        sha256=_digest(outputs.files),
        **context.stated,
        class_order=order_by_labels(context, member_name(path), outputs.names(), outputs.named),
        model=MODEL,
    )
    opens = partial(_open, member, path)
    return Teacher.asked_only(member, "a table of ready-made outputs", opens, Origin(path.name))


def outputs_of(path: Path) -> Outputs:
    """The outputs at `path`; raises EdistillError as `load` does."""
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
    outputs = outputs_of(path)
    refuse_changed(path, member.sha256, _digest(outputs.files))
    return Table(task, member, outputs)


class Table:
    """See `Answering`. Answers row numbers, without inputs."""

    module, wants, fineness = None, None, ROUNDING

    def __init__(self, task: type[Task], member: Member, outputs: Outputs) -> None:
        self.task, self.member, self._outputs = task, member, outputs
        self._held: dict[str, Array] = {}  # by split, or by view if there are several; see `in_view`
        self._views: dict[str, int] = {}
        self._checked = Remarked(task, member)

    @property
    def remark(self) -> str | None:
        return self._checked.remark

    def to(self, device: torch.device) -> None:
        """Does nothing: a table is on no device."""

    def meets(self, split: str, rows: Rows) -> None:
        """Read the outputs of a split.

        Raises:
            EdistillError: there are none, they are of other rows, or a row has some numbers that are not finite.
        """
        if split in self._held or split in self._views:
            return
        name = self.member.name
        if split not in self._outputs.splits:
            what = "distorted rows" if not is_split(split) else f"data.{split.replace('/', '.')}"
            raise EdistillError(
                f"Member {name} has outputs of {first_few(sorted(self._outputs.splits), 6)} in {self._outputs.path}, "
                f"and cannot be asked about {split}. Write its outputs of that too, or leave {what} out."
            )
        values = self._outputs.read(split, rows)
        several = values.ndim == 3
        if several:
            self._views[split] = len(values)
            self._checked.tell(unsaid(self.viewed(split)))
        for view, each in enumerate(values if several else [values]):
            asked = in_view(split, view) if several else split
            refuse_broken_rows(each, name, asked, self._outputs)
            self._held[asked] = each

    def viewed(self, split: str) -> Viewed:
        """The views that its outputs of a split cover; `meets` must have read them."""
        return Viewed(self.member.name, str(self._outputs.path), self._views.get(split), self._outputs.made)

    def answers(self, split: str, rows: Sequence[int], inputs: Tensor | None) -> NDArray[np.float32]:
        """See `Answering`; rows that it does not answer are NaN."""
        if split not in self._held:
            raise EdistillError(
                f"Member {self.member.name} has outputs of {self._views.get(split, 'no')} views of {split} in "
                f"{self._outputs.path}, and none of its rows as they are. Ask about another split."
            )
        said = self._held[split][list(rows)]
        there = np.flatnonzero(~np.isnan(said).any(axis=1))
        if len(there) == len(said):
            return self._checked.answers(said, split, rows)
        answered = [rows[at] for at in there.tolist()]
        known = self._checked.answers(said[there], split, answered) if answered else self._any
        found = np.full((len(said), known.shape[1]), np.nan, np.float32)
        if answered:
            found[there] = known
        return found

    @cached_property
    def _any(self) -> NDArray[np.float32]:
        """One of its answers, (1, W); raises EdistillError if it has none."""
        for split, values in self._held.items():
            there = np.flatnonzero(~np.isnan(values).any(axis=1))
            if len(there):
                return self._checked.answers(values[there[:1]], split, [int(there[0])])
        raise EdistillError(
            f"Member {self.member.name} answers no row of {first_few(sorted(self._held), 6)}: all its outputs in "
            f"{self._outputs.path} are NaN. Write what it said of some rows, or remove it from teachers.path."
        )


def refuse_broken_rows(values: Array, name: str, split: str, outputs: Outputs) -> None:
    """Raise EdistillError for a row of outputs (N, ·) with some numbers that are not finite.

    A row that is not answered has NaN in all its numbers.
    """
    broken = ~np.isfinite(values).all(axis=1) & ~np.isnan(values).all(axis=1)
    if broken.any():
        key, row = f"data.{split.replace('/', '.')}", int(broken.argmax())
        raise EdistillError(
            f"Member {name} says {values[row][:4].tolist()} at row {row} of {split}, in {outputs.path}: of "
            f"{int(broken.sum()):,} of {len(values):,} rows some numbers are not finite. Make a row that it does not "
            f"answer NaN in all of them, write the others again, or leave these rows out of {key}."
        )
