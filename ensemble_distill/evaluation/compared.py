"""Students of one ensemble compared: the figures of each over its seeds, and which differences are clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemble_distill.evaluation.measured import Measured
from ensemble_distill.evaluation.names import STUDENT
from ensemble_distill.evaluation.paired import LEVEL, Difference, differences, draws_for
from ensemble_distill.evaluation.result import SCHEMA, Evaluation
from ensemble_distill.runs.run import Run
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.task import Task

SECTIONS = ("worth", "fidelity", "quality")


@dataclass(frozen=True)
class Side:
    """Runs that differ only in their seed.

    Attributes:
        name: their common name.
        runs: the runs' names.
        figures: {section: means over the runs}; the sections are "worth", "fidelity" and "quality".
        spread: {section: standard deviations over the runs}, with n − 1 in the divisor; None for a single run.
    """

    name: str
    runs: tuple[str, ...]
    figures: Mapping[str, Figures]
    spread: Mapping[str, Figures]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "runs": list(self.runs), "figures": dict(self.figures), "spread": dict(self.spread)}


@dataclass(frozen=True)
class Compared:
    """What `compare` returns.

    Attributes:
        task: the task of the runs.
        split, rows: the evaluated split, and its number of answers.
        members: the number of members of the ensemble.
        sides: two or more sides.
        apart: for each side but the first, its figures minus the first side's. Worth is left out, since its ladder is
            not computed for drawn rows.
        draws: how often rows were drawn; 0 if there are too few rows, and then nothing has an interval.
        evaluations: one for each run.
        one_student: the sides that hold the first side's student in another file, which differ only by rounding.
    """

    task: Task
    split: str
    rows: int
    members: int
    sides: tuple[Side, ...]
    apart: Mapping[str, Mapping[str, Difference]]
    draws: int
    evaluations: tuple[Evaluation, ...]
    one_student: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `compare --json`."""
        return {
            "schema": SCHEMA,
            "task": self.task.key,
            "split": self.split,
            "rows": self.rows,
            "level": LEVEL,
            "draws": self.draws,
            "against": self.sides[0].name,
            "one_student": list(self.one_student),
            "sides": [side.to_json() for side in self.sides],
            "differences": {
                name: {figure: difference.to_json() for figure, difference in of.items()}
                for name, of in self.apart.items()
            },
        }


def compared(
    measured: Measured, runs: Sequence[Run], found: Sequence[Evaluation], groups: Mapping[str, Sequence[int]]
) -> Compared:
    """The comparison of several runs that were measured on the same rows.

    Args:
        measured: what was measured.
        runs: the runs, possibly exported files.
        found: the evaluation of each run.
        groups: the positions of the runs of each side, by the side's name.
    """
    models = [[measured.figured(at) for at in group] for group in groups.values()]
    draws = draws_for(measured.numbers(len(found)), measured.main.rows)
    first, *others = groups
    one_student = tuple(name for name in others if _are_one(runs, groups[first], groups[name]))
    apart = dict(zip(others, differences(models, measured.main.rows, draws), strict=True))
    for name in one_student:
        apart[name] = {figure: replace(of, rounding=True) for figure, of in apart[name].items()}
    return Compared(
        task=measured.task,
        split=measured.split,
        rows=found[0].rows,
        members=len(measured.members),
        sides=tuple(_side(name, [found[at] for at in group]) for name, group in groups.items()),
        apart=apart,
        draws=draws,
        evaluations=tuple(found),
        one_student=one_student,
    )


def _are_one(runs: Sequence[Run], one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sides have the same weights and calibrations, in full precision."""
    theirs, others = ([runs[at].whole for at in side] for side in (one, other))
    known = [of for of in theirs if of is not None]
    return len(known) == len(theirs) == len(others) and all(of in known for of in others)


def _side(name: str, runs: Sequence[Evaluation]) -> Side:
    each = [_figures(run) for run in runs]
    figures = {section: {key: _mean(each, section, key) for key in each[0][section]} for section in each[0]}
    spread = {section: {key: _deviation(each, section, key) for key in each[0][section]} for section in each[0]}
    return Side(name, tuple(run.run for run in runs), figures, spread)


def _figures(run: Evaluation) -> dict[str, Figures]:
    worth, student = run.worth and run.worth[STUDENT], run.models[STUDENT]
    found = {"worth": worth.to_figures() if worth else {}, "fidelity": run.fidelity, "quality": student or {}}
    return {section: found[section] for section in SECTIONS}


def _values(each: Sequence[Mapping[str, Figures]], section: str, key: str) -> list[float] | None:
    values = [figures[section].get(key) for figures in each]
    return None if any(value is None for value in values) else [value for value in values if value is not None]


def _mean(each: Sequence[Mapping[str, Figures]], section: str, key: str) -> float | None:
    values = _values(each, section, key)
    return None if values is None else float(np.mean(values))


def _deviation(each: Sequence[Mapping[str, Figures]], section: str, key: str) -> float | None:
    values = _values(each, section, key)
    return None if values is None or len(values) < 2 else float(np.std(values, ddof=1))
