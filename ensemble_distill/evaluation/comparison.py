"""Students of one ensemble beside it, its mean member and its best sub-ensembles, on the same rows in one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.shifts import SEVERITIES, Shifted, shifts_for
from ensemble_distill.data.source import Array, Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.answers import Answers, first_input
from ensemble_distill.evaluation.cost import cost, mean_cost
from ensemble_distill.evaluation.figures import Figures, Rows
from ensemble_distill.evaluation.halves import halves, halves_rows
from ensemble_distill.evaluation.offsets import Offsets
from ensemble_distill.evaluation.rows import concatenate, fidelity_rows, member_rows, prediction_rows
from ensemble_distill.evaluation.subensembles import SubEnsembles
from ensemble_distill.evaluation.tasks import TASKS
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.students.own_row import refuse_dependent
from ensemble_distill.training.plain_rows import plain_batches

SIZES = {"best-2": 2, "best-3": 3}  # sub-ensembles, and how many members each has

# "ensemble", "member", "best-2", "best-3", an average of students by its name, or the position of the run whose student
# it is
Model = str | int


@dataclass(frozen=True)
class Compared:
    """The rows of one split.

    Attributes:
        models: of each model.
        nearness: to the ensemble, of each model that is not made of all its members; see `fidelity_rows`.
        offsets: of each student's fake that there is; see `Offsets.rows`.
        halves: of the ensemble; see `halves_rows`. None for too few members, and on rows that have no controls.
    """

    models: Mapping[Model, Rows]
    nearness: Mapping[Model, Rows]
    offsets: Mapping[int, Rows]
    halves: Rows | None


class Comparison:
    """Runs that share an ensemble.

    Args:
        runs: one or more.
        answers: their ensemble's.
        averages: ensembles of the runs' students by name, each with the positions of their runs.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        answers: Answers,
        progress: Progress,
        averages: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.runs, self.answers, self.progress = runs, answers, progress
        self.averages = averages or {}
        self.task = TASKS[runs[0].architecture.task.key]
        self.students = [run.student(trust=answers.trusted).to(answers.device) for run in runs]
        self.chosen: dict[str, tuple[int, ...] | None] = dict.fromkeys(SIZES)
        self._tried = False

    def choose(self, source: Source, labels: Array) -> None:
        """Find the sub-ensembles of the least NLL on the validation rows; they are part of what is compared later."""
        search, done = SubEnsembles(), 0
        self.progress.start("choosing sub-ensembles on validation", total=len(source), unit="rows")
        try:
            for outputs in self.answers.of("validation", source):
                search.add(self.answers.predictive(outputs), _labels(labels[done : done + len(outputs)]))
                done += len(outputs)
                self.progress.advance(len(outputs))
        finally:  # an error here does not end the evaluation
            self.progress.finish()
        self.chosen = {name: search.best(size) for name, size in SIZES.items()}

    def on(self, split: str, source: Source) -> Compared:
        """Every model on a configured split; labels of OOD sets mean nothing here, and there are no controls there."""
        inside = not split.startswith("ood/")
        labels = source.labels if inside else None
        self.progress.start(f"evaluating {split}", total=len(source), unit="rows")
        compared = self._compared(source, labels, self.answers.of(split, source), split, controlled=inside)
        self.progress.finish()
        return compared

    def shifted(self, split: str, source: Source) -> dict[str, dict[int, dict[Model, Figures]]]:
        """{shift: {severity: {model: figures}}}, of every shift for such rows; the members are asked themselves."""
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
        compared = self._compared(shifted, shifted.labels, self.answers.asked(shifted, named), named)
        return {model: self.task.figures(rows) for model, rows in compared.models.items()}

    def costs(self, source: Source) -> dict[Model, Figures]:
        """Of one row; without those of the members where they are not at hand."""
        found: dict[Model, Figures] = {}
        if self.answers.at_hand:
            modules = [module.cpu() for module in self.answers.modules]
            inputs = [first_input(source, member.preprocessing) for member in self.answers.members]
            found |= {"ensemble": cost(modules, inputs), "member": mean_cost(modules, inputs)}
            for name, at in self.chosen.items():
                if at is not None:
                    found[name] = cost([modules[m] for m in at], [inputs[m] for m in at])
        for index, (run, student) in enumerate(zip(self.runs, self.students, strict=True)):
            found[index] = cost([student.cpu()], [first_input(source, run.architecture.preprocessing)])
        for average, indices in self.averages.items():
            inputs = [first_input(source, self.runs[index].architecture.preprocessing) for index in indices]
            found[average] = cost([self.students[index] for index in indices], inputs)
        return found

    @torch.no_grad()
    def _compared(
        self, source: Source, labels: Array | None, answers: Iterator[Tensor], named: str, controlled: bool = False
    ) -> Compared:
        models: dict[Model, list[Rows]] = defaultdict(list)
        nearness: dict[Model, list[Rows]] = defaultdict(list)
        offsets = Offsets(self.answers.family, self.answers.predictive, len(source))
        splits, split_rows = halves(self.answers.pooled) if controlled else [], []
        for (rows, students), outputs in zip(self._predicted(source, named), answers, strict=True):
            ensemble = self.answers.predictive(outputs)
            y = None if labels is None else _labels(labels[rows.start : rows.stop])
            models["ensemble"].append(prediction_rows(self.task, ensemble, y))
            models["member"].append(member_rows(self.task, ensemble, y))
            averages = {name: self._average([students[index] for index in at]) for name, at in self.averages.items()}
            others: dict[Model, Predictive] = dict(students.items())
            others |= {name: self.answers.predictive(outputs, at) for name, at in self.chosen.items() if at is not None}
            for model, predictive in others.items():
                models[model].append(prediction_rows(self.task, predictive, y))
                nearness[model].append(fidelity_rows(ensemble, predictive))
            for name, average in averages.items():
                models[name].append(prediction_rows(self.task, average, y))
                nearness[name].append(fidelity_rows(ensemble, average.pooled()))  # of nobody's heads
            if controlled:
                offsets.add(rows, outputs, students)
            if splits:
                pairs = [[self.answers.predictive(outputs, half) for half in pair] for pair in splits]
                split_rows.append(halves_rows(pairs))
            self.progress.advance(len(rows))
        return Compared(
            {model: concatenate(batches) for model, batches in models.items()},
            {model: concatenate(batches) for model, batches in nearness.items()},
            offsets.rows() if controlled else {},
            concatenate(split_rows) if split_rows else None,
        )

    def _average(self, students: Sequence[Predictive]) -> Predictive:
        """The ensemble whose members are what the students predict, each with equal weight."""
        raw = torch.stack([student.as_member() for student in students], dim=1)
        return self.answers.family.predictive(raw, None, "probabilities")

    def _predicted(self, source: Source, named: str) -> Iterator[tuple[range, dict[int, Predictive]]]:
        """The students' predictions, batch by batch; those of equal preprocessing share the rendering."""
        different = list(dict.fromkeys(run.architecture.preprocessing for run in self.runs))
        workers, device = self.answers.workers, self.answers.device
        streams = [plain_batches(source, to, workers, device) for to in different]
        for batches in zip(*streams, strict=True):
            rows, inputs = batches[0][0], [x.to(device) for _, x in batches]
            self._refuse_dependent([inputs[different.index(run.architecture.preprocessing)] for run in self.runs])
            predicted: dict[int, Predictive] = {}
            for index, (run, student) in enumerate(zip(self.runs, self.students, strict=True)):
                raw = student(inputs[different.index(run.architecture.preprocessing)]).cpu().double()
                _refuse_not_finite(raw, run, rows, named)
                predicted[index] = student.predictive(raw)
            yield rows, predicted

    def _refuse_dependent(self, inputs: Sequence[Tensor]) -> None:
        """Once, on some rows of the first batch: raise EdistillError for a student that is no function of its row."""
        if not self._tried:
            for run, student, x in zip(self.runs, self.students, inputs, strict=True):
                refuse_dependent(student, x, str(run.folder))
        self._tried = True


def _refuse_not_finite(raw: Tensor, run: Run, rows: range, named: str) -> None:
    finite = raw.flatten(1).isfinite().all(1).numpy()
    if not finite.all():
        at = int(np.argmin(finite))
        head = int(raw[at].isfinite().all(-1).int().argmin())
        raise EdistillError(
            f"Head {head} of the student of {run.folder} says {raw[at, head, :4].tolist()} at row {rows[at]} of "
            f"{named}: not finite. Train it again, with a smaller train.lr or train.clip-grad where it was trained, "
            "from other members (student.init) where it was solved for."
        )


def _labels(labels: Array) -> Tensor:
    """Classes as int64, targets as float64."""
    y = torch.as_tensor(np.asarray(labels))
    return y.double() if y.is_floating_point() else y.long()
