"""The figures of one run, from the values of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ensemble_distill.evaluation.choosing import Choice
from ensemble_distill.evaluation.controls import controls
from ensemble_distill.evaluation.fidelity import fidelity
from ensemble_distill.evaluation.measuring import Model, SplitValues
from ensemble_distill.evaluation.names import ENSEMBLE, MEMBER, STUDENT, SUBENSEMBLES
from ensemble_distill.evaluation.ood import detection
from ensemble_distill.evaluation.paired import Figured, Rows
from ensemble_distill.evaluation.result import Evaluation, WhoAnswers
from ensemble_distill.evaluation.selective import Selective, selective
from ensemble_distill.evaluation.worth import Worth, worth
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.figures import Figures, Values
from ensemble_distill.tasks.reference import Reference


@dataclass(frozen=True)
class Measured:
    """Everything measured of runs that share an ensemble.

    Attributes:
        task: the task of the runs.
        members: the names of the ensemble's members.
        split: the evaluated split.
        main: the values of its rows.
        ood: the values of each OOD set.
        shifts: {shift: {severity: {model: figures}}}; None if shifts were not evaluated.
        levels: what the severities of each shift mean.
        costs: the cost of each model that could be timed.
        choice: the chosen sub-ensembles, and the search for others.
        references: for each run, its student's outputs on the calibration rows; empty if there are none.
    """

    task: Task
    members: tuple[str, ...]
    split: str
    main: SplitValues
    ood: Mapping[str, SplitValues]
    shifts: Mapping[str, Mapping[int, Mapping[Model, Figures]]] | None
    levels: Mapping[str, tuple[str, ...]]
    costs: Mapping[Model, Figures]
    choice: Choice
    references: Sequence[Reference] = ()

    def evaluation(
        self, index: int, named: str, calibrated: bool, chain: Mapping[str, Model] | None = None
    ) -> Evaluation:
        """The figures of one run.

        Args:
            index: the run's position.
            named: the run's name.
            calibrated: whether the run is calibrated.
            chain: the generations of a chain and their averages, by the names they get; None for a run.
        """
        more = chain or {}
        names: dict[str, Model] = {ENSEMBLE: ENSEMBLE, MEMBER: MEMBER, STUDENT: index}
        names |= {**{name: name for name in SUBENSEMBLES}, **more}

        worths = self._worth(names)

        def each(found: Mapping[Model, Figures]) -> dict[str, Figures | None]:
            return {name: found.get(model) for name, model in names.items()}

        return Evaluation(
            task=self.task,
            run=named,
            split=self.split,
            rows=len(self.main.models[ENSEMBLE]["total_uncertainty"]),
            models=each(self._figures),
            fidelity=self._nearness[index],
            ood={name: each(found) for name, found in self._detected.items()},
            cost=each(self.costs),
            subensembles={
                name: None if at is None else tuple(self.members[m] for m in at)
                for name, at in self.choice.chosen.items()
            },
            subensemble_fidelity={name: self._nearness.get(name) for name in SUBENSEMBLES},
            fidelity_controls=self._controls(index),
            chain_fidelity={name: self._nearness[model] for name, model in more.items()} if more else None,
            calibrated=calibrated,
            ladder=self.main.ladder,
            worth=worths,
            instead=None if worths is None else self._instead(worths),
            answering=self._answering,
            selective=self._selective(index),
            shifts=None
            if self.shifts is None
            else {
                shift: {severity: each(found) for severity, found in severities.items()}
                for shift, severities in self.shifts.items()
            },
            shift_levels=None if self.shifts is None else {shift: self.levels[shift] for shift in self.shifts},
        )

    def figured(self, index: int) -> Figured:
        """A function that gives the figures of the run at a position on some of the answers."""
        main, unit = self.main, self._unit
        own, near, like = main.models[index], main.nearness[index], self._compared(index)
        ensemble = main.models[ENSEMBLE]
        member = {name: values for name, values in main.models[MEMBER].items() if name == "nll"}

        def on(some: Rows) -> Figures:
            ours, all_of_it, each, alike, both = (_at(some, rows) for rows in (own, ensemble, member, like, near))
            return {**fidelity(all_of_it, each, alike, both, unit), **self.task.figures(ours)}

        return on

    def numbers(self, runs: int) -> int:
        """About how many numbers go into the figures of `runs` runs."""
        main = self.main
        ours = sum(values.size for values in (*main.models[0].values(), *main.nearness[0].values()))
        theirs = sum(values.size for values in main.models[ENSEMBLE].values())
        return runs * (ours + theirs + main.models[MEMBER].get("nll", main.rows).size)

    @property
    def _answering(self) -> WhoAnswers | None:
        counts, unanswered, members = self.main.answering, self.main.unanswered, len(self.members)
        if counts is None:
            return WhoAnswers(members, members, members, unanswered) if unanswered else None
        return WhoAnswers(members, int(counts.min()), int(counts.max()), unanswered)

    @cached_property
    def _figures(self) -> dict[Model, Figures]:
        return {model: self.task.figures(rows) for model, rows in self.main.models.items()}

    @cached_property
    def _unit(self) -> float:
        return self.task.unit(self.main.models[ENSEMBLE])

    def _compared(self, model: Model) -> Values:
        """The values of those of a model's heads that are compared with the ensemble."""
        return self.main.compared.get(model, self.main.models[model])

    @cached_property
    def _nearness(self) -> dict[Model, Figures]:
        ensemble, member = self.main.models[ENSEMBLE], self.main.models[MEMBER]
        return {
            model: fidelity(ensemble, member, self._compared(model), rows, self._unit)
            for model, rows in self.main.nearness.items()
        }

    def _worth(self, names: Mapping[str, Model]) -> dict[str, Worth | None] | None:
        """The worth of each model but the ensemble and its mean member; None if there is no ladder."""
        main, ladder = self.main, self.main.ladder
        if ladder is None:
            return None
        found: dict[str, Worth | None] = dict.fromkeys(name for name in names if name not in (ENSEMBLE, MEMBER))
        for name in found:
            model = names[name]
            if model in main.nearness:
                mean_kl = float(main.nearness[model]["mean_kl"].mean())
                own, member = self.costs.get(model), self.costs.get(MEMBER)
                found[name] = worth(
                    ladder, main.models[ENSEMBLE], main.models[model], mean_kl, own, member, self._compared(model)
                )
        return found

    def _instead(self, worths: Mapping[str, Worth | None]) -> tuple[str, ...] | None:
        """The best members by NLL on the validation rows, at the student's cost.

        None unless the student is worth fewer members than it costs, and where those are known to be worth fewer still.
        """
        student = worths[STUDENT]
        if student is None or not student.falls_short or self.choice.search is None:
            return None
        best = self.choice.search.best(max(1, int(student.cost_in_members)))
        if best is None:
            return None
        known = [worths.get(name) for name, chosen in self.choice.chosen.items() if chosen == best]
        if any(one is not None and one.is_worth_fewer(student) for one in known):
            return None
        return tuple(self.members[at] for at in best)

    def _selective(self, index: int) -> Selective | None:
        if not self.references:
            return None
        return selective(self.task, self.references[index], self.main.models[index], self.main.conformal[index])

    def _controls(self, index: int) -> dict[str, Figures]:
        main = self.main
        student, both = self._compared(index), main.nearness[index]
        return controls(main.models[ENSEMBLE], student, both, main.offsets.get(index), main.halves, self._unit)

    @cached_property
    def _detected(self) -> dict[str, dict[Model, Figures]]:
        return {
            name: {
                model: detection(self.main.models[model], rows, self._unit)
                for model, rows in outside.models.items()
                if model in self.main.models  # best-k is left out where some member does not answer a row of the split
            }
            for name, outside in self.ood.items()
        }


def _at(some: Rows, rows: Values) -> Values:
    return {name: values[some] for name, values in rows.items()}
