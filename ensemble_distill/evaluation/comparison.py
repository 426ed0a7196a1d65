"""Runs of one ensemble side by side, as lines of one table with a line for each figure and a column for each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ensemble_distill.evaluation.names import CONTROLS, ENSEMBLE, MEMBER, SHARED, STUDENT, TOTAL
from ensemble_distill.evaluation.result import SCHEMA, Evaluation, Models
from ensemble_distill.evaluation.worth import COSTS, RUNGS, Worth, cost_shares
from ensemble_distill.runs.folder import generation_name
from ensemble_distill.tasks.figures import UNCERTAINTIES, Figures
from ensemble_distill.tasks.task import Task

GENERATION = generation_name("")
NEAR = ("worth", "fidelity")  # the sections that say how near models are to the ensemble


@dataclass(frozen=True)
class Line:
    """One figure of every model.

    Attributes:
        section: "worth", "fidelity", "quality", "uncertainty", "ood/NAME", "cost", "kept/COVERAGE", "conformal/ALPHA"
            or "shifts/NAME/SEVERITY".
        figure: its name in the JSON document.
        models: the columns.
        values: one per model; None if the figure does not apply.
    """

    section: str
    figure: str
    models: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """What `evaluate` found for one or more runs.

    Attributes:
        runs: one or more evaluations, of the same ensemble on the same rows.
    """

    runs: tuple[Evaluation, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluate --json` for several runs."""
        first = self.runs[0]
        return {
            "schema": SCHEMA,
            "task": first.task.key,
            "split": first.split,
            "rows": first.rows,
            "runs": [run.to_json() for run in self.runs],
        }

    @property
    def task(self) -> Task:
        """The task of the runs, which decides the figures and their units."""
        return self.runs[0].task

    @property
    def chain(self) -> list[str]:
        """The generations of a chain and their averages; empty for runs."""
        return list(self.runs[0].chain_fidelity or ())

    @property
    def columns(self) -> list[str]:
        """The models: those that the runs share, then each run's student under the run's name.

        For a chain, the generations and their averages take the student's place.
        """
        return [*self._shared, *self._students]

    @property
    def near(self) -> list[str]:
        """The columns of fidelity: all models but the mean member, and the controls.

        The controls follow a single run and precede several runs.
        """
        return [*self._before, *self._students, *self._behind]

    @cached_property
    def controls(self) -> list[str]:
        """The controls shown beside the fidelity figures.

        For a single run, they are all controls with figures; for several runs, only the halves of their ensemble.
        """
        found = self.runs[0].fidelity_controls
        told = [name for name in CONTROLS if any(value is not None for value in found[name].values())]
        return told if len(self.runs) == 1 else [name for name in told if name == "halves"]

    @property
    def of_one_teacher(self) -> bool:
        """Whether the ensemble is a single teacher, which is its own mean member."""
        ensemble, answering = self.runs[0].models[ENSEMBLE], self.runs[0].answering
        if answering is not None:
            return answering.members == 1
        return ensemble is not None and ensemble["model_uncertainty"] is None

    @cached_property
    def _shared(self) -> list[str]:
        models = self.runs[0].models
        there = [name for name in SHARED if models[name] is not None]
        return [name for name in there if not (self.of_one_teacher and name == MEMBER)]

    @property
    def _students(self) -> list[str]:
        return self.chain or [run.run for run in self.runs]

    @property
    def _before(self) -> list[str]:
        ensemble, *parts = [name for name in self._shared if name != MEMBER]
        return [ensemble, *parts] if len(self.runs) == 1 else [ensemble, *self.controls, *parts]

    @property
    def _behind(self) -> list[str]:
        return self.controls if len(self.runs) == 1 else []

    def lines(self) -> Iterator[Line]:
        """Every figure; those that say how near the students are come first."""
        for tables in zip(*(_tables(run) for run in self.runs), strict=True):
            section, first = tables[0]
            near = section in NEAR
            before, behind = (self._before, self._behind) if near else (self._shared, [])
            students = [first[name] for name in self.chain] or [table[STUDENT] for _, table in tables]
            models = [*map(first.get, before), *students, *map(first.get, behind)]
            for figure in first[STUDENT] or ():
                values = tuple(None if model is None else model[figure] for model in models)
                yield Line(section, figure, tuple(self.near if near else self.columns), values)


def _tables(run: Evaluation) -> Iterator[tuple[str, Models]]:
    """The sections of one run's figures."""
    if run.worth is not None:
        yield "worth", _worths(run, run.worth)
    parts = {**run.subensemble_fidelity, **(run.chain_fidelity or {})}
    yield "fidelity", {STUDENT: run.fidelity, **parts, **run.fidelity_controls}
    for section, uncertain in (("quality", False), ("uncertainty", True)):
        yield section, {model: _only(figures, uncertain) for model, figures in run.models.items()}
    for name, models in run.ood.items():
        yield f"ood/{name}", models
    yield "cost", run.cost
    if run.selective is not None:
        nobody: Models = dict.fromkeys(run.chain_fidelity or ())
        last = [name for name in nobody if name.startswith(GENERATION)][-1:]  # the chain's figures are its
        for section, figures in run.selective.sections():
            yield section, {**nobody, **dict.fromkeys([STUDENT, *last], figures)}
    for shift, severities in (run.shifts or {}).items():
        for severity, models in severities.items():
            yield f"shifts/{shift}/{severity}", models


def _worths(run: Evaluation, worths: Mapping[str, Worth | None]) -> Models:
    """Worth and costs in members, for the ensemble too; the control of uncertainty is also in that control's column."""
    found = {name: None if each is None else each.to_figures() for name, each in worths.items()}
    student, members = worths[STUDENT], float(len(run.ladder.mean_kl)) if run.ladder else None
    control = None if student is None else student.uncertainty_control
    costs = cost_shares(run.cost[ENSEMBLE], run.cost[MEMBER])
    whole: Figures = dict.fromkeys(RUNGS, members)
    whole |= {f"cost_{name}": None if costs is None else costs[name] for name in COSTS}
    nothing = dict.fromkeys(whole)
    fakes: Models = {name: {**nothing, "uncertainty": control if name == TOTAL else None} for name in CONTROLS}
    return {**found, ENSEMBLE: whole, **fakes}


def _only(figures: Mapping[str, float | None] | None, uncertain: bool) -> Figures | None:
    if figures is None:
        return None
    return {name: value for name, value in figures.items() if (name.partition(".")[0] in UNCERTAINTIES) == uncertain}
