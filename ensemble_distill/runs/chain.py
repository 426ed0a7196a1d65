"""A born-again chain on disk: a folder of runs, each of which learned from the one before."""

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
    """Whether the first generation of a chain was at least begun there."""
    return (folder / ARGS).is_file() and (folder / generation_name(1) / CONFIG).is_file()


def finished_generations(folder: Path) -> list[Path]:
    """From the first one on, as far as each is finished."""
    there = (folder / generation_name(number) for number in itertools.count(1))
    return list(itertools.takewhile(lambda generation: (generation / WEIGHTS).is_file(), there))


@dataclass(frozen=True)
class Chain:
    """The finished generations of a chain, in order; at least one."""

    folder: Path
    runs: tuple[Run, ...]

    @classmethod
    def open(cls, folder: Path) -> Chain:
        """Raises EdistillError when no generation is finished, or one did not learn from the one before as it is."""
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
        """How many generations it is to have."""
        return read_args(self.folder).train.generations or len(self.runs)

    @property
    def teachers(self) -> tuple[Member, ...]:
        """What the first generation learned from."""
        return self.runs[0].provenance.members


def refuse_changed(before: Run, after: Path, config: StudentConfig) -> None:
    """Raise EdistillError when a generation is not the one that the next has learned from.

    One that was calibrated since is: that changes what it predicts, and not what it was.

    Args:
        after, config: the next one's folder, and what it says; it need not be finished.
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
