"""An exported ONNX file in the place of a run: what is evaluated is what the file itself says, through onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.cost import Elsewhere
from ensemble_distill.facts import Calibration, MadeFrom
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runs.chain import Chain
from ensemble_distill.runs.config import Provenance, StudentConfig
from ensemble_distill.runs.exports import refuse_stale
from ensemble_distill.runs.finding import find, find_runs
from ensemble_distill.runs.folder import export_again, run_of
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.serving.served import Served
from ensemble_distill.students.architecture import Architecture, shares_of
from ensemble_distill.tasks.reference import Reference

SUFFIX = ".onnx"
APART = 10.0  # times what two runtimes may differ by: the file's pooling, and ours of its heads


class GraphStudent(Elsewhere):
    """x (B, ...) to the numbers of each head, (B, H, *L, W), in the members' unit, as a student of torch says them.

    Args:
        served: the file.
        family: what those numbers mean.
    """

    def __init__(self, served: Served, family: Family) -> None:
        super().__init__()
        self.served, self.family = served, family
        self._weights = shares_of(served.card.weights)
        self._compared = False

    def forward(self, x: Tensor) -> Tensor:
        outputs = {name: torch.from_numpy(values) for name, values in self.served.run(x.cpu().numpy()).items()}
        raw = self.family.from_emitted(outputs)
        if not self._compared:
            self._refuse_other_pooling(raw, outputs)
            self._compared = True
        return raw

    def predictive(self, raw: Tensor) -> Predictive:
        """What such numbers mean."""
        return self.family.predictive(raw, self._weights, self.served.card.average)

    def _refuse_other_pooling(self, raw: Tensor, outputs: dict[str, Tensor]) -> None:
        """Raise EdistillError where the heads together are not what the file says is their prediction."""
        ours = {name: values.numpy() for name, values in named_outputs(self.predictive(raw)).items()}
        task = self.served.card.task
        for name in task.served(0):
            apart = np.abs(ours[name] - outputs[name].numpy())
            if not (apart <= APART * task.tolerance(name, ours)).all():
                raise EdistillError(
                    f"{self.served.path} says {name} that its heads do not make together, by {apart.max():.2e}: it was "
                    f"changed, or does not say how they pool. Export the run again: {export_again(self.served.path)}."
                )


@dataclass(frozen=True)
class ExportedRun(Run):
    """A run of which there is only an exported file; `folder` is that file. Nothing of it is kept beside."""

    served: Served = field(kw_only=True)

    @classmethod
    def open_file(cls, path: Path) -> ExportedRun:
        """Raises: EdistillError where the file is none of ours, or stands in a run of other weights."""
        served = Served(path, threads=1)  # as everything is timed
        card = served.card
        refuse_stale(served.path, card.made_from)
        family = DirichletFamily() if "concentration" in served.outputs else card.task.members_family()
        heads = next((o.shape[1] for o in served.session.get_outputs() if o.name.startswith("head_")), 1)
        architecture = Architecture(
            task=card.task,
            model=served.path.name,
            kwargs={},
            hidden=(),
            heads=heads,
            form="heads",
            family=family,
            kind=card.kind,
            shape=card.shape,
            preprocessing=card.preprocessing,
            average=card.average,
            weights=card.weights,
        )
        origin = Provenance(card.method, {}, card.members, features=card.features, columns=card.columns)
        weights = "" if card.made_from is None else card.made_from.weights
        return cls(served.path, StudentConfig(architecture, origin), weights, served=served)

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

    def student(  # type: ignore[override]  # it says what a Student does, and is none of torch
        self, body: Any = None, *, trust: Trust = NOTHING, calibrated: bool = True
    ) -> GraphStudent:
        """What the file says, which is calibrated already."""
        return GraphStudent(self.served, self.architecture.family).eval()


# --- finding ----------------------------------------------------------------------------------------------------


def file_of(runs: Path, name: str | None) -> Path | None:
    """The exported file that a name is, by itself or below a folder of runs; None for what is none."""
    if name is None or not name.lower().endswith(SUFFIX):
        return None
    return next((path for path in (Path(name), runs / name) if path.is_file()), Path(name))


def find_evaluated(runs: Path, name: str | None) -> Run | Chain:
    """A run, a chain, or an exported file; see `find`."""
    file = file_of(runs, name)
    return find(runs, name) if file is None else ExportedRun.open_file(file)


def evaluated_runs(runs: Path, names: Sequence[str]) -> list[Run]:
    """Runs and exported files that are to stand side by side; see `find_runs`."""
    files = [file_of(runs, name) for name in names]
    return [
        find_runs(runs, [name])[0] if file is None else ExportedRun.open_file(file)
        for name, file in zip(names, files, strict=True)
    ]


def with_their_runs(runs: Path, names: Sequence[str]) -> list[str]:
    """Names, and before each exported file the run that it stands in, once."""
    found: list[str] = []
    for name in names:
        file = file_of(runs, name)
        own = None if file is None else run_of(file)
        there = {Path(other).resolve() for other in found} | {(runs / other).resolve() for other in (*found, *names)}
        if own is not None and own.resolve() not in there:
            found.append(str(own))
        found.append(name)
    return found
