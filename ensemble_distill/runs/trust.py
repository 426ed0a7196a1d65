"""Whose code may build the body of a run: a run is a folder that may come from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.runtime.factories import portable


@dataclass(frozen=True)
class Trust:
    """What a user trusts.

    Attributes:
        runs: the folder of the user's own runs, `output.runs`: theirs may run the code that they name.
        model: a factory that the user's own settings name, `student.model`: it builds bodies of that name.
        everything: whether any run may (`--trust-checkpoints`).
    """

    runs: Path | None = None
    model: str | None = None
    everything: bool = False

    def covers(self, folder: Path) -> bool:
        """Whether a run there may run the code that it names; links are followed, so that none leads out."""
        if self.everything:
            return True
        return self.runs is not None and folder.resolve().is_relative_to(self.runs.resolve())

    def factory(self, named: str) -> str | None:
        """The user's own factory for a body that a run calls `named`; None where the settings name no such one."""
        return self.model if self.model is not None and portable(self.model) == portable(named) else None


NOTHING = Trust()
