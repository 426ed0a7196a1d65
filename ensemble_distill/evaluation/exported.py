"""An exported file in place of a run: the file's own outputs are evaluated, in whatever runtime runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.cost import Elsewhere
from ensemble_distill.facts import Calibration, MadeFrom
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.runs.exported_files import located
from ensemble_distill.runs.exports import refuse_stale
from ensemble_distill.runs.finding import find, find_runs
from ensemble_distill.runs.folder import export_again, run_of
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.by_torch import ByTorch
from ensemble_distill.serving.exported_file import ExportedFile
from ensemble_distill.serving.kinds import open_file
from ensemble_distill.students.architecture import Architecture, shares_of
from ensemble_distill.students.student import Student
from ensemble_distill.tasks.reference import Reference

APART = 10.0  # tolerances by which the file's pooled outputs may differ from our pooling of its heads
WHOLE = "float32"

Said = Callable[[nn.Module, Tensor], Mapping[str, Tensor]]
Tell = Callable[[str], None]


class Emitting:
    """Turns a file's named outputs into each head's raw numbers, (B, H, *L, W), in the members' unit.

    Args:
        file: the file, whose card says how the heads pool.
        family: the family of the raw numbers.
    """

    def __init__(self, file: ExportedFile, family: Family) -> None:
        self.file, self.family = file, family
        self._weights = shares_of(file.card.weights)
        self._compared = False

    def raw(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The raw numbers. Raises EdistillError if the pooled heads are not what the file says they predict."""
        raw = self.family.from_emitted(outputs)
        if not self._compared:
            self._refuse_other_pooling(raw, outputs)
            self._compared = True
        return raw

    def predictive(self, raw: Tensor) -> Predictive:
        """The distributions of raw numbers."""
        return self.family.predictive(raw, self._weights, self.file.card.average)

    def _refuse_other_pooling(self, raw: Tensor, outputs: Mapping[str, Tensor]) -> None:
        ours = {name: values.cpu().numpy() for name, values in named_outputs(self.predictive(raw)).items()}
        task = self.file.card.task
        for name in task.served(0):
            apart = np.abs(ours[name] - outputs[name].cpu().numpy())
            if not (apart <= APART * task.tolerance(name, ours)).all():
                raise EdistillError(
                    f"{self.file.path} says {name} that its heads do not make together, by {apart.max():.2e}: it was "
                    f"changed, or does not say how they pool. Export the run again: {export_again(self.file.path)}."
                )


class GraphStudent(Elsewhere):
    """The student in a file that another runtime runs: a module from x (B, ...) to the raw numbers of each head."""

    def __init__(self, served: ExportedFile, family: Family) -> None:
        super().__init__()
        self.served, self.emitting = served, Emitting(served, family)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.served.run(x.cpu().numpy())
        return self.emitting.raw({name: torch.from_numpy(values) for name, values in outputs.items()})

    def predictive(self, raw: Tensor) -> Predictive:
        """The distributions of raw numbers."""
        return self.emitting.predictive(raw)


class ProgramStudent(nn.Module):
    """The student in a file that is a torch module with named outputs: its parameters and operations can be counted."""

    def __init__(self, own: nn.Module, said: Said, emitting: Emitting) -> None:
        """Wrap the file's module.

        Args:
            own: the module.
            said: runs it and names its outputs.
            emitting: turns them into raw numbers.
        """
        super().__init__()
        self.own, self.said, self.emitting = own, said, emitting

    def forward(self, x: Tensor) -> Tensor:
        return self.emitting.raw(self.said(self.own, x))

    def predictive(self, raw: Tensor) -> Predictive:
        """The distributions of raw numbers."""
        return self.emitting.predictive(raw)


@dataclass(frozen=True)
class ExportedRun(Run):
    """A run of which there is only an exported file; `folder` is that file, and no results are saved with it."""

    served: ExportedFile = field(kw_only=True)

    @classmethod
    def open_file(cls, path: Path) -> ExportedRun:
        """Open an exported file.

        Raises:
            EdistillError: edistill did not write the file, or it lies in a run that has other weights.
        """
        served = open_file(path, threads=1)  # all models are timed on one thread
        card = served.card
        refuse_stale(served.path, card.made_from)
        weights = "" if card.made_from is None else card.made_from.weights
        return cls(served.path, served.config or _config_of(served), weights, served=served)

    @property
    def carries(self) -> Reference | None:
        return self.served.card.reference

    @property
    def keeps(self) -> bool:
        return False

    @property
    def calibration(self) -> Calibration | None:
        made = self.served.card.made_from
        return None if made is None else made.calibration

    @property
    def made_from(self) -> MadeFrom:
        return self.served.card.made_from or MadeFrom("", None)

    @property
    def whole(self) -> MadeFrom | None:
        return self.served.card.made_from if self.served.card.precision == WHOLE else None

    def student(  # type: ignore[override]  # it behaves as a Student, but may not be a torch one
        self, body: Any = None, *, trust: Trust = NOTHING, calibrated: bool = True
    ) -> Student | GraphStudent | ProgramStudent:
        """The file's student, which is already calibrated.

        Raises:
            EdistillError: the file holds only weights, and the code that makes its body is missing or not trusted.
        """
        module, family = self.served.module(trust), self.architecture.family
        if isinstance(module, Student):
            return module
        if isinstance(self.served, ByTorch):
            return ProgramStudent(module, self.served.said, Emitting(self.served, family)).eval()
        return GraphStudent(self.served, family).eval()


def _config_of(file: ExportedFile) -> StudentConfig:
    """The configuration of a student of which only inputs and outputs are known."""
    card = file.card
    architecture = Architecture(
        task=card.task,
        model=file.path.name,
        kwargs={},
        hidden=(),
        heads=file.heads,
        form="heads",
        family=DirichletFamily() if "concentration" in file.outputs else card.task.members_family(),
        kind=card.kind,
        shape=card.shape,
        preprocessing=card.preprocessing,
        average=card.average,
        weights=card.weights,
    )
    origin = Provenance(card.method, {}, card.members, features=card.features, columns=card.columns)
    return StudentConfig(architecture, origin)


# --- finding ----------------------------------------------------------------------------------------------------


def find_evaluated(runs: Path, name: str | None, tell: Tell) -> Run | Chain:
    """A run, a chain, or an exported file; see `find` and `located`."""
    file = None if name is None else located(runs, name, tell)
    return find(runs, name) if file is None else ExportedRun.open_file(file)


def evaluated_runs(runs: Path, names: Sequence[str], tell: Tell) -> list[Run]:
    """Runs and exported files to evaluate side by side; see `find_runs` and `located`."""
    files = [located(runs, name, tell) for name in names]
    return [
        find_runs(runs, [name])[0] if file is None else ExportedRun.open_file(file)
        for name, file in zip(names, files, strict=True)
    ]


def with_their_runs(runs: Path, names: Sequence[str], tell: Tell) -> list[str]:
    """The names, with a folder of exported files replaced by its representative file.

    Before each exported file, the run that it lies in is inserted, unless it is already among the names.
    """
    found: list[str] = []
    for name in names:
        file = located(runs, name, tell)
        own = None if file is None else run_of(file)
        there = {Path(other).resolve() for other in found} | {(runs / other).resolve() for other in (*found, *names)}
        if own is not None and own.resolve() not in there:
            found.append(str(own))
        found.append(name if file is None else str(file))
    return found
