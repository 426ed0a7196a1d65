"""The report of a finished training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.runs.run import Run
from ensemble_distill.students.student import Student


@dataclass(frozen=True)
class TrainReport:
    """A finished run, and what this call did for it."""

    folder: Path
    method: str
    heads: int
    parameters: int
    fresh: bool  # False if the run was up to date already
    resumed_at: int  # the step at which an interrupted training resumed; 0 for a new one
    seconds: float
    still_falling: float | None = None  # set if the training ended too early; see `Provenance`

    @classmethod
    def of(cls, run: Run, student: Student, resumed_at: int | None, started: float) -> TrainReport:
        """Report a run; `resumed_at` is None if it was up to date and nothing was trained."""
        return cls(
            folder=run.folder,
            method=run.provenance.method,
            heads=run.architecture.heads,
            parameters=sum(p.numel() for p in student.parameters()),
            fresh=resumed_at is not None,
            resumed_at=resumed_at or 0,
            seconds=time.monotonic() - started,
            still_falling=run.provenance.still_falling,
        )
