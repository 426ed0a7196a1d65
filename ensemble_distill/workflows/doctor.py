"""`edistill doctor`: the machine, problems of a settings file on it, and how long each command will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.words import bytes_told
from ensemble_distill.settings import Settings
from ensemble_distill.setup.machine import machine_here
from ensemble_distill.workspace.workspace import Workspace

ROOM = 0.9  # share of the free disk that may be filled


@dataclass(frozen=True)
class DoctorReport:
    """The findings of `edistill doctor`.

    Attributes:
        machine: versions, devices, threads, memory and free disk.
        checks: each thing checked in the settings: "what", "told" and whether it is a "problem".
        forecast: "seconds" and "bytes" of each command.
        next: the command to run if there is no problem.
    """

    machine: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    forecast: list[dict[str, Any]] = field(default_factory=list)
    next: str = "cache-logits"

    @property
    def problems(self) -> list[str]:
        """The problems, each with its remedy, in the order in which to fix them."""
        return [str(check["told"]) for check in self.checks if check["problem"]]


def doctor(load: Callable[[], Settings], *, trust: bool = False, progress: Progress | None = None) -> DoctorReport:
    """Check everything that the commands would refuse.

    Members and body are built and run on a few rows, since nothing else tells whether they fit. Nothing is trained, and
    nothing is written.

    Args:
        load: reads the settings.
        trust: as for the commands: load pickled checkpoints that name arbitrary globals, and run the code that runs
            from elsewhere name.
    """
    from ensemble_distill.setup.checks import Check, examine
    from ensemble_distill.setup.forecast import forecast

    try:
        settings = load()
    except EdistillError as error:
        return DoctorReport(machine_here(Path()), [asdict(Check("edistill.toml", str(error), True))])
    workspace = Workspace(settings, progress or Silent(), trust)
    found = examine(workspace)
    lacking = {check.what for check in found.checks if check.problem}
    steps = [] if "train.device" in lacking else forecast(workspace, found)
    machine = machine_here(workspace.cache_folder)
    if (needed := sum(step.bytes for step in steps)) > ROOM * machine["free_disk"]:
        told = (
            f"{bytes_told(machine['free_disk'])} are free, and the road fills about {bytes_told(needed)}. Set "
            "output.cache to another disk, or fewer views.count."
        )
        found.checks.append(Check("output.cache", told, True))
    checks, steps_told = ([asdict(one) for one in some] for some in (found.checks, steps))
    return DoctorReport(machine, checks, steps_told, "train" if found.cached else "cache-logits")
