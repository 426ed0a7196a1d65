"""Finding the run a command is about."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.config import Settings
from ensemble_distill.errors import EdistillError
from ensemble_distill.students.run import CONFIG, WEIGHTS, Run


def find_run(settings: Settings, named: str | None) -> Run:
    """A run by folder or by name under output.runs; the latest finished one by default.

    Raises:
        EdistillError: there is none.
    """
    runs = Path(settings.output.runs)
    if named is not None:
        there = [folder for folder in (Path(named), runs / named) if folder.is_dir()]
        if there:  # a folder that only shares the name of a run gives way to it
            return Run.open(next((folder for folder in there if (folder / CONFIG).is_file()), there[0]))
        known = ", ".join(sorted(path.parent.name for path in runs.glob(f"*/{WEIGHTS}"))) or "none"
        raise EdistillError(f"There is no run {named}. Give a run's folder or its name (in {runs}: {known}).")
    finished = sorted(runs.glob(f"*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise EdistillError(f"{runs} holds no finished run. Run edistill train first.")
    return Run.open(finished[-1].parent)
