"""Finding the run or the chain that a command is about."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.config import Settings
from ensemble_distill.errors import EdistillError
from ensemble_distill.students.run import CONFIG, WEIGHTS, Run
from ensemble_distill.workflows.chain import Chain, is_chain


def find(settings: Settings, name: str | None) -> Run | Chain:
    """A run or a chain by folder or by name under output.runs; the latest that has something finished by default.

    Raises:
        EdistillError: there is none.
    """
    runs = Path(settings.output.runs)
    if name is None:
        folder = _latest(runs).parent
        return Chain.open(folder.parent) if is_chain(folder.parent) else Run.open(folder)
    there = [folder for folder in (Path(name), runs / name) if folder.is_dir()]
    if not there:
        known = ", ".join(_names(runs)) or "none"
        raise EdistillError(f"There is no run {name}. Give a run's folder or its name (in {runs}: {known}).")
    # a folder that only shares the name of a run gives way to it
    folder = next((folder for folder in there if (folder / CONFIG).is_file() or is_chain(folder)), there[0])
    return Chain.open(folder) if is_chain(folder) else Run.open(folder)


def find_run(settings: Settings, name: str | None) -> Run:
    """One run; of the latest chain its latest generation by default.

    Raises:
        EdistillError: there is none; or it is a chain, and does not say which of its generations.
    """
    if name is None:
        return Run.open(_latest(Path(settings.output.runs)).parent)
    found = find(settings, name)
    if isinstance(found, Chain):
        raise EdistillError(
            f"{found.folder} is a chain of {len(found.runs)} generations. Name one of them: "
            f"{found.folder.name}/{found.runs[-1].folder.name}."
        )
    return found


def _finished(runs: Path) -> list[Path]:
    """The weights of every finished run, those of chains among them."""
    return [*runs.glob(f"*/{WEIGHTS}"), *runs.glob(f"*/generation-*/{WEIGHTS}")]


def _latest(runs: Path) -> Path:
    finished = sorted(_finished(runs), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise EdistillError(f"{runs} holds no finished run. Run edistill train first.")
    return finished[-1]


def _names(runs: Path) -> list[str]:
    return sorted({path.relative_to(runs).parts[0] for path in _finished(runs)})
