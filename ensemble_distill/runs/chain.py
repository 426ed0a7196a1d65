"""A born-again chain on disk: a folder of runs, each of which learned from the one before it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.folder import ARGS, CACHES, CONFIG, WEIGHTS, generation_name
from ensemble_distill.runs.run import Run


def is_chain(folder: Path) -> bool:
    """Whether the folder holds a chain whose first generation was at least begun."""
    return (folder / ARGS).is_file() and (folder / generation_name(1) / CONFIG).is_file()


def finished_generations(folder: Path) -> list[Path]:
    """The folders of the generations from the first to the last before an unfinished one."""
    there = (folder / generation_name(number) for number in itertools.count(1))
    return list(itertools.takewhile(lambda generation: (generation / WEIGHTS).is_file(), there))


@dataclass(frozen=True)
class Chain:
    """The finished generations of a chain, in order; at least one."""

    folder: Path
    runs: tuple[Run, ...]

    @classmethod
    def open(cls, folder: Path) -> Chain:
        """The chain in a folder.

        Raises:
            EdistillError: no generation is finished, a finished one follows a missing one, or one learned from another
                student than the one before it now is.
        """
        runs: list[Run] = []
        for generation in finished_generations(folder):
            runs.append(Run.open(generation))
            if len(runs) > 1:
                refuse_changed(runs[-2], runs[-1].folder, runs[-1].config)
        later = [path.parent.name for path in folder.glob(f"{generation_name('*')}/{WEIGHTS}")]
        if runs and len(later) > len(runs):
            raise EdistillError(
                f"{folder} has {len(later)} finished generations, and {generation_name(len(runs) + 1)} is not among "
                "them. Put it back, or run edistill train to make it again."
            )
        if not runs:
            raise EdistillError(f"{folder} holds no finished generation. Run edistill train to go on with it.")
        return cls(folder, tuple(runs))

    @property
    def planned(self) -> int:
        """The number of generations the chain should have."""
        return read_args(self.folder).train.generations or len(self.runs)

    @property
    def teachers(self) -> tuple[Member, ...]:
        """The members that the first generation learned from."""
        return self.runs[0].provenance.members


def refuse_changed(before: Run, after: Path, config: StudentConfig) -> None:
    """Raise EdistillError if a generation is not the student that the next one learned from.

    A generation that was calibrated since is accepted: calibration changes what it predicts, not what it was.

    Args:
        after, config: the next generation's folder and config; it need not be finished.
    """
    members = config.provenance.members
    if len(members) != 1:
        raise EdistillError(
            f"{after} learned from {' and '.join(member.name for member in members)}, and a generation learns from "
            f"{before.folder.name} alone. Delete {after} and {before.folder.parent / CACHES / before.folder.name}, and "
            "run edistill train again."
        )
    learned = members[0].sha256
    if learned not in (before.weights, before.digest):
        raise EdistillError(
            f"{after} learned from {before.folder.name} with sha256 {learned[:12]}…, and that is now "
            f"{before.digest[:12]}…. Put the old one back, calibration included, or delete "
            f"{after} and run edistill train again."
        )
