"""Whose code may build the body of a run, since a run's folder may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.runtime.factories import portable


@dataclass(frozen=True)
class Trust:
    """What a user trusts.

    Attributes:
        runs: the folder of the user's own runs, `output.runs`, which may execute the code that they name.
        model: the factory in the user's own settings, `student.model`, which builds bodies of that name.
        everything: whether any run may execute code (`--trust-checkpoints`).
    """

    runs: Path | None = None
    model: str | None = None
    everything: bool = False

    def covers(self, folder: Path) -> bool:
        """Whether a run in this folder may execute the code it names; links are resolved, so that none leads out of
        `runs`."""
        if self.everything:
            return True
        return self.runs is not None and folder.resolve().is_relative_to(self.runs.resolve())

    def factory(self, named: str) -> str | None:
        """The user's own factory for a body that a run calls `named`; None if the settings name no matching one."""
        return self.model if self.model is not None and portable(self.model) == portable(named) else None


NOTHING = Trust()
