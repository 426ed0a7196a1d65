"""What `evaluate` returns: the figures of one run, or of one chain, beside its ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ensemble_distill.evaluation.worth import Ladder, Worth
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.task import Task

if TYPE_CHECKING:
    from ensemble_distill.evaluation.selective import Selective  # by torch, which help is shown without

SCHEMA = 1

Models = Mapping[str, Figures | None]  # figures by model; None for a model that is not there


@dataclass(frozen=True)
class WhoAnswers:
    """Which rows members answer, where they do not answer all.

    Attributes:
        members: how many there are.
        least, most: how many answer a row of those that were evaluated.
        unanswered: how many more rows nobody answers, which were left out.
    """

    members: int
    least: int
    most: int
    unanswered: int


@dataclass(frozen=True)
class Evaluation:
    """One run beside its ensemble on the rows of one split.

    The models are "ensemble", "member" (the mean over members of each one's own figures), "student", "best-2" and
    "best-3". A chain has its generations and their averages besides, and its student is the last generation.

    Attributes:
        task: what is predicted.
        run: the run's name, or its folder where two runs share a name.
        split, rows: what it was evaluated on, and how many rows that has.
        models: quality and uncertainties of each model.
        fidelity: how near the student is to the ensemble; see `fidelity`.
        ood: of each OOD set the AUROC of each model's uncertainties.
        cost: parameters, multiply-accumulates and latency of each model. None where the members are not at hand.
        subensembles: the members of each sub-ensemble, by name; None where none was chosen.
        subensemble_fidelity: as `fidelity`, of each sub-ensemble.
        fidelity_controls: the same figures of each control; see `controls`.
        ladder: what sub-ensembles of k members get, k = 1 … M. None for an ensemble of one.
        worth: how many members the student, the sub-ensembles and the generations are worth. None as `ladder`.
        instead: the best members of the student's cost, where it is worth fewer. None else, or if nobody could choose.
        chain_fidelity: as `fidelity`, of each generation of a chain and each of their averages. None for a run.
        calibrated: whether the student, or a generation of the chain, is.
        undone: of each that is, the command that undoes it; "" of a file that stands by itself.
        still_falling: where the training of the student, or of a generation of the chain, ended too early, which share
            of its loss's fall came late; see `Provenance.still_falling`.
        limit: of a student that only tried the road, how many rows of each split it learned from at most. None else.
        answering: of how many members how many answer a row; None where all answer every row.
        selective: what is gained where uncertain rows are left to others, and what conformal sets hold. None without
            calibration rows.
        shifts: {shift: {severity: models}}. None where shifts were not asked for.
        shift_levels: what the severities of each shift mean. None as `shifts`.
    """

    task: Task
    run: str
    split: str
    rows: int
    models: Models
    fidelity: Figures
    ood: Mapping[str, Models]
    cost: Models
    subensembles: Mapping[str, tuple[str, ...] | None]
    subensemble_fidelity: Models
    fidelity_controls: Mapping[str, Figures]
    ladder: Ladder | None = None
    worth: Mapping[str, Worth | None] | None = None
    instead: tuple[str, ...] | None = None
    chain_fidelity: Mapping[str, Figures] | None = None
    calibrated: bool = False
    undone: tuple[str, ...] = ()
    still_falling: float | None = None
    limit: int | None = None
    answering: WhoAnswers | None = None
    selective: Selective | None = None
    shifts: Mapping[str, Mapping[int, Models]] | None = None
    shift_levels: Mapping[str, tuple[str, ...]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The document of `evaluate --json`, which the run keeps too; null for what does not apply."""
        return {
            "schema": SCHEMA,
            "task": self.task.key,
            "run": self.run,
            "split": self.split,
            "rows": self.rows,
            "models": dict(self.models),
            "fidelity": self.fidelity,
            "ood": {name: dict(models) for name, models in self.ood.items()},
            "cost": dict(self.cost),
            "subensembles": {name: None if of is None else list(of) for name, of in self.subensembles.items()},
            "subensemble_fidelity": dict(self.subensemble_fidelity),
            "fidelity_controls": dict(self.fidelity_controls),
            "chain_fidelity": None if self.chain_fidelity is None else dict(self.chain_fidelity),
            "calibrated": self.calibrated,
            **self.shifts_to_json(),
            "ladder": None if self.ladder is None else self.ladder.to_json(),
            "worth": None
            if self.worth is None
            else {name: None if each is None else each.to_json() for name, each in self.worth.items()},
            "instead": None if self.instead is None else list(self.instead),
            "still_falling": self.still_falling,
            "limit": self.limit,
            "answering": None if self.answering is None else asdict(self.answering),
            "selective": None if self.selective is None else self.selective.to_json(),
        }

    def shifts_to_json(self) -> dict[str, Any]:
        """The part of the document that tells of shifts."""
        if self.shifts is None or self.shift_levels is None:
            return {"shifts": None, "shift_levels": None}
        return {
            "shifts": {
                shift: {str(severity): dict(models) for severity, models in severities.items()}
                for shift, severities in self.shifts.items()
            },
            "shift_levels": {shift: list(levels) for shift, levels in self.shift_levels.items()},
        }
