"""What `evaluate` returns: the figures of a run or a chain beside its ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ensemble_distill.evaluation.worth import Ladder, Worth
from ensemble_distill.tasks.figures import Figures
from ensemble_distill.tasks.task import Task

if TYPE_CHECKING:
    from ensemble_distill.evaluation.selective import Selective  # imports torch, without which help is shown

SCHEMA = 1

Models = Mapping[str, Figures | None]  # figures by model; None for a model that does not exist


@dataclass(frozen=True)
class WhoAnswers:
    """Which rows members answer, if they do not answer all.

    Attributes:
        members: the number of members.
        least, most: the fewest and the most members that answer an evaluated row.
        unanswered: the number of further rows that no member answers, which were left out.
    """

    members: int
    least: int
    most: int
    unanswered: int


@dataclass(frozen=True)
class Evaluation:
    """One run beside its ensemble on the rows of one split.

    The models are "ensemble", "member" (the mean over members of each one's own figures), "student", "best-2" and
    "best-3". A chain also has its generations and their averages, and its student is the last generation.

    Attributes:
        task: the task of the run.
        run: the run's name, or its folder if two runs share a name.
        split, rows: the evaluated split, and the number of evaluated answers.
        models: quality and uncertainties of each model.
        fidelity: how near the student is to the ensemble; see `fidelity`.
        ood: for each OOD set, the AUROC of each model's uncertainties.
        cost: parameters, multiply-accumulates and latency of each model; None for models of members not at hand.
        subensembles: the members of each sub-ensemble, by name; None if none was chosen.
        subensemble_fidelity: `fidelity` of each sub-ensemble.
        fidelity_controls: `fidelity` of each control; see `controls`.
        ladder: the figures of sub-ensembles of k = 1 … M members; None if no row is answered by several members.
        worth: the worth of the student, the sub-ensembles and the generations in members; None without a ladder.
        instead: the best members at the student's cost, if it is worth fewer; None if not, or if no choice is possible.
        chain_fidelity: `fidelity` of each generation of a chain and each of their averages; None for a run.
        calibrated: whether the student, or a generation of the chain, is calibrated.
        undone: for each calibrated run, the command that undoes it; "" for a file that lies in no run.
        still_falling: the share of the loss's fall that came late, if the training of the student or of a generation
            ended too early; see `Provenance.still_falling`.
        limit: for a trial, the most rows of each split that the student learned from; None if it is not a trial.
        answering: how many of the members answer a row; None if all answer every row.
        selective: what is gained by leaving uncertain rows to others, and the coverage of conformal sets; None without
            calibration rows.
        shifts: {shift: {severity: models}}; None if shifts were not evaluated.
        shift_levels: what the severities of each shift mean; None without shifts.
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
        """The document of `evaluate --json`, which is also saved in the run; null for what does not apply."""
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
        """The part of the document on shifts."""
        if self.shifts is None or self.shift_levels is None:
            return {"shifts": None, "shift_levels": None}
        return {
            "shifts": {
                shift: {str(severity): dict(models) for severity, models in severities.items()}
                for shift, severities in self.shifts.items()
            },
            "shift_levels": {shift: list(levels) for shift, levels in self.shift_levels.items()},
        }
