"""Finding the run or chain that a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError, first_few, meant
from ensemble_distill.runs.chain import Chain, is_chain
from ensemble_distill.runs.folder import CONFIG, WEIGHTS, below
from ensemble_distill.runs.run import Run


def find(runs: Path, name: str | None) -> Run | Chain:
    """A run or chain, by its folder or by its name in a folder of runs; by default the latest with a finished student.

    Raises:
        EdistillError: there is none.
    """
    if name is None:
        folder = _latest(runs).parent
        return Chain.open(folder.parent) if is_chain(folder.parent) else Run.open(folder)
    there = [folder for folder in (Path(name), runs / name) if folder.is_dir()]
    if not there:
        known = _names(runs)
        like = f"{told} " if (told := meant(Path(name).name, known, "")) else ""
        listed = first_few(known, 12) or "none"
        if Path(name).is_file():
            raise EdistillError(f"{name} is a file, and no run. Give a run's folder or its name (in {runs}: {listed}).")
        raise EdistillError(f"There is no run {name}. {like}Give a run's folder or its name (in {runs}: {listed}).")
    # a run takes precedence over a folder that only shares its name
    folder = next((folder for folder in there if (folder / CONFIG).is_file() or is_chain(folder)), there[0])
    folder = folder if folder.name.strip(".") else folder.resolve()  # "." and ".." name no run
    return Chain.open(folder) if is_chain(folder) else Run.open(folder)


def find_run(runs: Path, name: str | None) -> Run:
    """A single run, the latest by default; for a chain, its latest finished generation.

    Raises:
        EdistillError: there is none.
    """
    found = find(runs, name)
    return found.runs[-1] if isinstance(found, Chain) else found


def find_runs(runs: Path, names: Sequence[str]) -> list[Run]:
    """Runs to compare with one another; raises EdistillError if one does not exist or is a chain."""
    found = [find(runs, name) for name in names]
    for one in found:
        if isinstance(one, Chain):
            raise EdistillError(
                f"{one.folder} is a chain, whose generations have a table of their own: edistill evaluate "
                f"{one.folder.name}. Beside runs of the same ensemble its first can stand, "
                f"{one.folder.name}/{one.runs[0].folder.name}."
            )
    return [one for one in found if isinstance(one, Run)]


def _latest(runs: Path) -> Path:
    finished = sorted(below(runs, WEIGHTS), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise EdistillError(f"{runs} holds no finished run. Run edistill train first.")
    return finished[-1]


def _names(runs: Path) -> list[str]:
    return sorted({path.relative_to(runs).parts[0] for path in below(runs, WEIGHTS)})
