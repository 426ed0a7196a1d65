"""Measures students, their ensemble, its mean member and its best sub-ensembles on the same rows in one pass.

Members of weight 0 are not part of the ensemble, so neither its mean member nor its cost includes them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.data.rows import first_input
from ensemble_distill.data.shifts import SEVERITIES, Shifted, shifts_for
from ensemble_distill.data.source import Array, Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.choosing import Chosen
from ensemble_distill.evaluation.cost import Model as Costed
from ensemble_distill.evaluation.cost import costs
from ensemble_distill.evaluation.each_head import EachHead, HeadByHead
from ensemble_distill.evaluation.ensemble import Ensemble
from ensemble_distill.evaluation.halves import halves, halves_rows
from ensemble_distill.evaluation.ladder import Climb
from ensemble_distill.evaluation.names import ENSEMBLE, MEMBER
from ensemble_distill.evaluation.offsets import Offsets
from ensemble_distill.evaluation.rows import Answers, fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.selective import conformal_rows
from ensemble_distill.evaluation.students import Students
from ensemble_distill.evaluation.worth import Ladder
from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.predictive.answered import answered, answering, matched
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runtime.grown import Grown, GrownValues
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.tasks.figures import Figures, Values
from ensemble_distill.tasks.reference import Reference
from ensemble_distill.teachers.run import once

# A model's name in `names`, the name of an average of students, or the position of a student's run.
Model = str | int


@dataclass(frozen=True)
class SplitValues:
    """The values of the answers in one split.

    Attributes:
        models: of each model; see `prediction_rows` and `member_rows`.
        compared: of each student's heads that are compared with the ensemble; see `matched`. Empty if all heads are
            compared on every row.
        nearness: of students, sub-ensembles and averages to the ensemble; see `fidelity_rows`.
        offsets: of the students' fakes that exist; see `Offsets.rows`.
        halves: of the ensemble; see `halves_rows`. None with too few members, or without controls.
        ladder: the figures of sub-ensembles. None if no row is answered by several members, or without controls.
        rows: the row of each answer, (A,).
        heads: the heads of each student; empty without controls.
        conformal: of each student; see `conformal_rows`. Empty without controls.
        answering: how many members answer, (A,); None if all members answer every row.
        unanswered: the number of answers that no member gives, which are left out.
    """

    models: Mapping[Model, Values]
    compared: Mapping[Model, Values]
    nearness: Mapping[Model, Values]
    offsets: Mapping[int, Values]
    halves: Values | None
    ladder: Ladder | None
    rows: NDArray[np.int64]
    heads: Mapping[int, EachHead]
    conformal: Mapping[int, Values]
    answering: NDArray[np.int64] | None = None
    unanswered: int = 0


@dataclass(frozen=True)
class Bench:
    """The models that are measured together.

    Attributes:
        ensemble: the ensemble.
        students: the runs' students.
        averages: ensembles of students by name, as positions of runs.
        chosen: sub-ensembles by name, as positions of members.
        progress: where to report progress.
        references: each student's outputs on the calibration rows; empty if there are none.
    """

    ensemble: Ensemble
    students: Students
    averages: Mapping[str, Sequence[int]]
    chosen: Chosen
    progress: Progress
    references: Sequence[Reference] = ()

    def on(self, split: str, source: Source) -> SplitValues:
        """Measure every model on a configured split; for OOD sets, without controls and without their labels."""
        inside = not split.startswith("ood/")
        labels = source.labels if inside else None
        self.progress.start(f"evaluating {split}", total=len(source), unit="rows")
        found = self._measured(source, labels, self.ensemble.outputs(split, source), split, controlled=inside)
        self.progress.finish()
        return found

    def shifted(self, split: str, source: Source) -> dict[str, dict[int, dict[Model, Figures]]]:
        """{shift: {severity: {model: figures}}} for every shift of this kind of rows, without using the cache."""
        names = shifts_for(source.kind)
        rows = len(names) * len(SEVERITIES) * len(source)
        self.progress.start(f"evaluating shifts of {split}", total=rows, unit="rows")
        found = {
            name: {severity: self._on_shift(split, source, name, severity) for severity in SEVERITIES} for name in names
        }
        self.progress.finish()
        return found

    def _on_shift(self, split: str, source: Source, name: str, severity: int) -> dict[Model, Figures]:
        shifted, named = Shifted(source, name, severity), f"{split}, {name} {severity}"
        found = self._measured(shifted, shifted.labels, self.ensemble.asked(shifted, named), named)
        return {model: self.ensemble.task.figures(rows) for model, rows in found.models.items()}

    def costs(self, source: Source) -> dict[Model, Figures]:
        """The cost of each model for one row; without the members' if they are not at hand, or not all are modules.

        Members that are heads of one run share one pass through its body; one such member alone costs the body and its
        head.
        """
        models: dict[Model, Costed] = {}
        modules, pooled = [module.cpu() for module in self.ensemble.modules], self.ensemble.pooled
        if modules:
            inputs = [_first(source, member.preprocessing) for member in self.ensemble.members]

            def served(some: Sequence[int]) -> Costed:
                ran = once([modules[m] for m in some])
                return [module for _, module in ran], [inputs[some[at]] for at, _ in ran]

            models[ENSEMBLE] = served(pooled)
            if len(models[ENSEMBLE][0]) < len(pooled):
                each = [served([m]) for m in pooled]
                models[MEMBER] = [module for (module,), _ in each], [x for _, (x,) in each]
            models |= {name: served(at) for name, at in self.chosen.items() if at is not None}
        students = [student.cpu() for student in self.students.modules]
        inputs = [_first(source, run.architecture.preprocessing) for run in self.students.runs]
        for index, (student, x) in enumerate(zip(students, inputs, strict=True)):
            models[index] = ([student], [x])
        for average, indices in self.averages.items():
            models[average] = ([students[index] for index in indices], [inputs[index] for index in indices])
        found = dict(zip(models, costs(list(models.values())), strict=True))
        figures = {model: of.figures() for model, of in found.items()}
        return figures | ({MEMBER: found.get(MEMBER, found[ENSEMBLE]).of_one(len(pooled))} if modules else {})

    @torch.no_grad()
    def _measured(
        self, source: Source, labels: Array | None, members: Iterator[Tensor], named: str, controlled: bool = False
    ) -> SplitValues:
        task, pooled = self.ensemble.task, self.ensemble.pooled
        count = task.answers_in(len(source), source.labels)
        found, offsets = _Found(), Offsets(self.ensemble.family, self.ensemble.predictive, count)
        splits = halves(pooled) if controlled else []
        climb = Climb(pooled, count, task.width) if controlled and len(pooled) > 1 else None
        for (rows, raw), said in zip(self.students.raw(source, named), members, strict=True):
            answers = Answers(task, source.labels, rows)
            outputs, each = answers.of(said), [answers.of(one) for one in raw]
            there = self.ensemble.answered(outputs)
            found.unanswered += int((~there).sum())
            if there.any():
                rows_here = answers.of_row[there]
                found.rows.add(rows_here)
                students = self.students.predictive([one[there] for one in each])
                y = None if labels is None or answers.labels is None else answers.labels[there]
                ensemble = self.ensemble.predictive(outputs := outputs[there])
                self._add(found, ensemble, y, students, outputs)
                if climb is not None:
                    climb.add(ensemble, y)
                if controlled:
                    offsets.add(outputs, students)
                    for index, student in students.items():
                        found.heads[index].add(rows_here, ensemble, student)
                    for index, reference in enumerate(self.references):
                        found.conformal[index].add(conformal_rows(task, reference, students[index], y))
                if splits:
                    pairs = [[self.ensemble.predictive(outputs, half) for half in pair] for pair in splits]
                    found.halves.add(halves_rows(pairs))
            self.progress.advance(len(rows))
        refuse_unanswered(found.models, named)
        return found.values(offsets.rows() if controlled else {}, climb.ladder() if climb is not None else None)

    def _add(
        self,
        found: _Found,
        ensemble: Predictive,
        y: Tensor | None,
        students: Mapping[int, Predictive],
        outputs: Tensor,
    ) -> None:
        """Add rows, each of which some member answers."""
        task = self.ensemble.task
        found.models[ENSEMBLE].add(prediction_rows(task, ensemble, y))
        pooled = self.ensemble.pooled
        part = ensemble if len(pooled) == outputs.shape[1] else self.ensemble.predictive(outputs, pooled)
        found.models[MEMBER].add(member_rows(task, part, y))
        here: dict[Model, Values] = {}
        for model, predictive, near in self._others(students, outputs):
            here[model] = prediction_rows(task, predictive, y)
            found.models[model].add(here[model])
            found.nearness[model].add(fidelity_rows(ensemble, near))
        several = answering(ensemble)
        found.partial |= several is not None
        found.answering.add(torch.full((len(outputs),), ensemble.members) if several is None else several)
        for model, student in students.items():
            found.compared[model].add(
                here[model] if several is None else prediction_rows(task, matched(student, ensemble), y)
            )
        for name, at in self.chosen.items():
            if at is not None and not answered(outputs[:, list(at)]).all():
                found.incomplete.add(name)

    def _others(
        self, students: Mapping[int, Predictive], outputs: Tensor
    ) -> Iterator[tuple[Model, Predictive, Predictive]]:
        """Students, sub-ensembles and averages: their prediction, and the part of it compared with the ensemble.

        For an average, that part is the pooled prediction, since none of its students imitates a member.
        """
        for index, student in students.items():
            yield index, student, student
        for name, at in self.chosen.items():
            if at is not None:
                part = self.ensemble.predictive(outputs, at)
                yield name, part, part
        for name, indices in self.averages.items():
            average = self._average([students[index] for index in indices])
            yield name, average, average.pooled()

    def _average(self, students: Sequence[Predictive]) -> Predictive:
        """The ensemble whose members are the students' pooled predictions, with equal weights."""
        raw = torch.stack([student.as_member() for student in students], dim=1)
        return self.ensemble.family.predictive(raw, None, "probabilities")


class _Found:
    """Collects values batch by batch."""

    def __init__(self) -> None:
        self.models: dict[Model, GrownValues] = defaultdict(GrownValues)
        self.compared: dict[Model, GrownValues] = defaultdict(GrownValues)
        self.nearness: dict[Model, GrownValues] = defaultdict(GrownValues)
        self.halves = GrownValues()
        self.rows = Grown()
        self.heads: dict[int, HeadByHead] = defaultdict(HeadByHead)
        self.conformal: dict[int, GrownValues] = defaultdict(GrownValues)
        self.answering = Grown()
        self.partial = False  # whether some member does not answer some row
        self.incomplete: set[str] = set()  # sub-ensembles with such a member
        self.unanswered = 0

    def values(self, offsets: Mapping[int, Values], ladder: Ladder | None) -> SplitValues:
        """All batches joined. A sub-ensemble that does not answer every row is left out: it would cover other rows."""
        models, nearness = (
            {model: grown.all() for model, grown in found.items() if model not in self.incomplete}
            for found in (self.models, self.nearness)
        )
        return SplitValues(
            models=models,
            compared={model: grown.all() for model, grown in self.compared.items()} if self.partial else {},
            nearness=nearness,
            offsets=offsets,
            halves=self.halves.all() or None,
            ladder=ladder,
            rows=self.rows.all(),
            heads={index: each.found() for index, each in self.heads.items()},
            conformal={index: grown.all() for index, grown in self.conformal.items()},
            answering=self.answering.all() if self.partial else None,
            unanswered=self.unanswered,
        )


def refuse_unanswered(models: Mapping[Model, GrownValues], named: str) -> None:
    """Raise EdistillError if no member answers any row, since there is nothing to compare with."""
    if not models:
        key = f"data.{named.replace('/', '.')}"
        raise EdistillError(
            f"No member answers any row of {named}: all their outputs of it are NaN. Leave {key} out, or give the "
            "outputs of the members that were asked about those rows."
        )


def _first(source: Source, to: AnyPreprocessing | None) -> Tensor:
    return torch.from_numpy(first_input(source, to))
