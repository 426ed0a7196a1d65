"""The ensemble itself as one ONNX file, for serving it without distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ensemble_distill import __version__
from ensemble_distill.errors import EdistillError
from ensemble_distill.exporting.members import Part, parts_of, refuse_other_encodings, reseen
from ensemble_distill.exporting.onnx import Wanted, refuse_large, traced, write_verified
from ensemble_distill.exporting.tracing import UntraceableError, reason_against
from ensemble_distill.exporting.versions import AS_TRACED, Versions, brought_to
from ensemble_distill.facts import ENSEMBLE, InputColumns, Kind, Member, Several
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Average, Predictive
from ensemble_distill.serving.card import Card
from ensemble_distill.students.architecture import shares_of
from ensemble_distill.students.fields import nothing
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.reference import Reference

INSTEAD = "serve a student of the ensemble (edistill train, edistill export --onnx)"


class Only(nn.Module):
    """Maps the rows of one named array, (B, n), to the array as the members take it, (B, ...)."""

    def __init__(self, shape: tuple[int, ...], ids: bool) -> None:
        super().__init__()
        self.shape, self.ids = shape, ids

    def forward(self, x: Tensor) -> Tensor:
        x = torch.unflatten(x, 1, self.shape)
        return x.to(torch.int64) if self.ids else x


class Ensemble(nn.Module):
    """Maps x (B, ...) to the outputs of all members, (B, M, W) in the cache's unit; some run in one batch, see
    `parts_of`.

    Attributes:
        members: in the order of M.
        task: what they predict.
        kind: of x.
        preprocessing: how a row becomes x: as the first member does it or, if the members take one of several arrays,
            as a row of that array alone, which the graph then takes by name.
        only: maps x to what the members take.
    """

    weights: Tensor | None

    def __init__(
        self,
        task: Task,
        kind: Kind,
        members: Sequence[Member],
        parts: Sequence[Part],
        weights: Sequence[float] | None = None,
        average: Average = "probabilities",
        only: Several | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = members[0].preprocessing if only is None else only
        self.only = nn.Identity() if only is None else Only(*_taken(only))
        self.task, self.kind, self.members, self.average = task, kind, tuple(members), average
        self.parts = nn.ModuleList(parts)
        names = [member.name for part in parts for member in part.members]
        self._order = [names.index(member.name) for member in members]
        self.register_buffer("weights", shares_of(weights), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.only(x)
        said = torch.cat([part(x.clone()) for part in self.parts], dim=1)  # a copy, since members may work in place
        return said if self._order == sorted(self._order) else said[:, self._order]

    def predictive(self, raw: Tensor) -> Predictive:
        """The ensemble's predictive distribution from the members' outputs (B, M, W)."""
        return self.task.members_family().predictive(raw, self.weights, self.average)


def ensemble_module(
    task: Task,
    kind: Kind,
    members: Sequence[Member],
    modules: Sequence[nn.Module],
    x: Tensor,
    weights: Sequence[float] | None = None,
    average: Average = "probabilities",
    only: Several | None = None,
) -> Ensemble:
    """The members as one module in eval mode, to export or to measure the latency of.

    Args:
        kind: of their inputs.
        modules: the members' networks, in eval mode on the CPU.
        x: (B, *shape), a few rows, preprocessed for the first member.
        weights, average: how the members are pooled; see `TeacherSettings`.
        only: the one of several arrays that all members take; None if they take whole rows.

    Raises:
        EdistillError: the members' preprocessing differs in ways that one input cannot serve.
    """
    if kind in ("text", "several"):
        refuse_other_encodings(members)
    seen = reseen(members) if kind == "pixels" else [None] * len(members)
    return Ensemble(task, kind, members, parts_of(task, members, modules, seen, x), weights, average, only).eval()


def export_ensemble(
    ensemble: Ensemble,
    x: Tensor,
    said: NDArray[np.float32],
    path: Path,
    columns: InputColumns | None = None,
    reference: Reference | None = None,
    versions: Versions = AS_TRACED,
) -> Path:
    """Write `path` and compare its outputs with those of the members.

    Args:
        x: real rows (B, *shape), preprocessed for the first member, B ≥ 1.
        said: (B, M, W), each member's own output for these rows, with its own preprocessing.
        path: the .onnx file, which is created only if the comparison passes.
        columns: the columns of a row, for tables.
        reference: statistics of calibration rows; None without any.
        versions: the ONNX versions of the file.

    Raises:
        EdistillError: a member cannot be exported, the file would exceed 2 GB, or onnxruntime's outputs differ by more
            than `Task.members_tolerance`.
    """
    refuse_large(ensemble, "The ensemble", f"Take members out of teachers.path, or {INSTEAD}")
    task, members, shape = ensemble.task, ensemble.members, tuple(x.shape[1:])
    card = Card(
        task=task,
        method=ENSEMBLE,
        version=__version__,
        kind=ensemble.kind,
        shape=shape,
        preprocessing=ensemble.preprocessing if ensemble.kind in ("pixels", "text", "several") else None,
        members=members,
        features=None if columns is None else columns.features,
        columns=columns,
        reference=reference,
        average=ensemble.average,
        weights=None if ensemble.weights is None else tuple(ensemble.weights.tolist()),
    )
    try:
        _, model = traced(ensemble, card)
    except UntraceableError as error:
        raise _named(ensemble, shape, str(error)) from error
    model = brought_to(model, versions)
    with torch.no_grad():
        outputs = named_outputs(ensemble.predictive(torch.from_numpy(said)))
    wanted = Wanted(
        x,
        {name: values.numpy() for name, values in outputs.items()},
        lambda name, of: task.members_tolerance(name, of, members),
        f"Report the members' architecture; until then {INSTEAD}.",
    )
    write_verified(path, model, card, wanted)
    return path


def _taken(only: Several) -> tuple[tuple[int, ...], bool]:
    """The shape of the array that the members take, and whether it holds integer ids."""
    (part,) = only.parts
    return part.shape, part.kind in ("text", "tokens")


def _named(ensemble: Ensemble, shape: tuple[int, ...], reason: str) -> EdistillError:
    """The error for an ensemble that cannot be exported, naming the first member that fails on its own."""
    who = "the members together"
    x = ensemble.only(nothing(2, shape, ensemble.kind == "text"))
    for part in ensemble.parts:
        assert isinstance(part, Part)
        if (own := reason_against(part, x)) is not None:
            who, reason = f"member {part.members[0].name}", own
            break
    return EdistillError(
        f"torch cannot export {who} to ONNX: {reason}. Rewrite that part of the module (teachers.model), or {INSTEAD}."
    )
