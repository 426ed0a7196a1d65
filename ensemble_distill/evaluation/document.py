"""The document of one evaluated run, and how it is kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_distill import __version__
from ensemble_distill.evaluation.comparison import SIZES, Compared, Model
from ensemble_distill.evaluation.controls import controls
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.figures import Figures, Rows
from ensemble_distill.evaluation.ood import detection
from ensemble_distill.evaluation.rows import prefixed
from ensemble_distill.evaluation.tasks import TASKS
from ensemble_distill.runs.evaluations import FIGURES_OF_ROWS
from ensemble_distill.runs.folder import EVALUATIONS, MADE_FROM
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.files import write_whole
from ensemble_distill.runtime.seals import WRITTEN_BY, write_sealed_json

SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """All that was found of runs that share an ensemble.

    Attributes:
        task: what they predict.
        members: the ensemble's names.
        split: which rows.
        main: those rows.
        ood: the rows of each OOD set.
        shifts: {shift: {severity: {model: figures}}}; None where they were not asked for.
        levels: what the severities of each shift mean.
        costs: of each model that is at hand.
        chosen: the positions of the members of each sub-ensemble.
    """

    task: str
    members: tuple[str, ...]
    split: str
    main: Compared
    ood: Mapping[str, Compared]
    shifts: Mapping[str, Mapping[int, Mapping[Model, Figures]]] | None
    levels: Mapping[str, tuple[str, ...]]
    costs: Mapping[Model, Figures]
    chosen: Mapping[str, tuple[int, ...] | None]

    def document(self, run: Run, index: int, named: str, also: Mapping[str, Model] | None = None) -> dict[str, Any]:
        """What `evaluate --json` prints of the run at that position; null for what does not apply.

        Args:
            also: more models by the names they get there: the generations of a chain, and their averages.
        """
        more = also or {}
        names: dict[str, Model] = {"ensemble": "ensemble", "member": "member", "student": index}
        names |= {**{name: name for name in SIZES}, **more}

        def each(found: Mapping[Model, Figures]) -> dict[str, Figures | None]:
            return {name: found.get(model) for name, model in names.items()}

        document: dict[str, Any] = {
            "schema": SCHEMA,
            "task": self.task,
            "run": named,
            "split": self.split,
            "rows": len(self.main.models["ensemble"]["total_uncertainty"]),
            "models": each(self._figures),
            "fidelity": self._nearness[index],
            "ood": {name: each(found) for name, found in self._detected.items()},
            "cost": each(self.costs),
            "subensembles": {
                name: None if at is None else [self.members[m] for m in at] for name, at in self.chosen.items()
            },
            "subensemble_fidelity": {name: self._nearness.get(name) for name in SIZES},
            "fidelity_controls": self._controls(index),
            "chain_fidelity": {name: self._nearness[model] for name, model in more.items()} if more else None,
            "calibrated": run.calibration is not None,
            "shifts": None,
            "shift_levels": None,
        }
        if self.shifts is not None:
            document["shifts"] = {
                shift: {str(severity): each(found) for severity, found in severities.items()}
                for shift, severities in self.shifts.items()
            }
            document["shift_levels"] = {shift: list(self.levels[shift]) for shift in self.shifts}
        return document

    @cached_property
    def _figures(self) -> dict[Model, Figures]:
        return {model: TASKS[self.task].figures(rows) for model, rows in self.main.models.items()}

    @cached_property
    def _nearness(self) -> dict[Model, Figures]:
        ensemble, member = self.main.models["ensemble"], self.main.models["member"]
        unit = TASKS[self.task].unit(ensemble)
        return {
            model: fidelity(ensemble, member, self.main.models[model], rows, unit)
            for model, rows in self.main.nearness.items()
        }

    def _controls(self, index: int) -> dict[str, Figures]:
        main, ensemble = self.main, self.main.models["ensemble"]
        unit = TASKS[self.task].unit(ensemble)
        student, both = main.models[index], main.nearness[index]
        return controls(ensemble, student, both, main.offsets.get(index), main.halves, unit)

    @cached_property
    def _detected(self) -> dict[str, dict[Model, Figures]]:
        return {
            name: {model: detection(self.main.models[model], rows) for model, rows in outside.models.items()}
            for name, outside in self.ood.items()
        }

    def keep(self, of: Path, students: Mapping[str, tuple[int, Run]], document: Mapping[str, Any]) -> None:
        """Write the document into the folder of a run or a chain, with the figures of each row in `.npz`.

        What is kept says of which weights it is, and which `.npz` belong to it. Shifts are kept apart: the next
        evaluation without them leaves them.

        Args:
            students: its runs by the names that their students get in `.npz`, each with its position.
        """
        folder = of / EVALUATIONS
        at = {name: index for name, (index, _) in students.items()}
        rows = {f"{self.split}.npz": _npz(self.main, at)}
        rows |= {f"ood/{name}.npz": _npz(outside, at) for name, outside in self.ood.items()}
        for name, content in rows.items():
            write_whole(folder / name, content, within=of)
        made: dict[str, Any] = {
            WRITTEN_BY: __version__,
            MADE_FROM: {name: run.made_from.to_json() for name, (_, run) in students.items()},
        }
        figures = {name: hashlib.sha256(content).hexdigest() for name, content in rows.items()}
        # last, since it tells of the others
        write_sealed_json(folder / f"{self.split}.json", {**document, **made, FIGURES_OF_ROWS: figures}, within=of)
        if self.shifts is not None:
            kept = ("schema", "task", "run", "split", "rows", "shifts", "shift_levels")
            shifts = {key: document[key] for key in kept}
            write_sealed_json(folder / "shifts" / f"{self.split}.json", {**shifts, **made}, within=of)


def _npz(compared: Compared, students: Mapping[str, int]) -> bytes:
    named: Rows = {}
    for model, rows in compared.models.items():
        if isinstance(model, str):
            named |= prefixed(model, rows)
    for name, index in students.items():
        named |= prefixed(name, compared.models[index])
        named |= prefixed("both" if name == "student" else f"both_{name}", compared.nearness[index])
    small: dict[str, Any] = {name: values.astype(np.float32) for name, values in named.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **small)
    return file.getvalue()
