"""Which folders a command may write to: none with other contents, and none that another output would delete."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ensemble_distill.cache.manifest import FILES, NAME
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.args import limit_of
from ensemble_distill.runs.chain import is_chain
from ensemble_distill.runs.folder import ARGS, CONFIG
from ensemble_distill.runs.folder import FILES as RUN_FILES
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.disk import refuse_no_folder
from ensemble_distill.runtime.files import LOCK, is_temporary
from ensemble_distill.settings import Settings


def refuse_within(folder: Path, key: str) -> None:
    """Raise EdistillError if `folder` lies in a part of a cache or a run that is deleted when that is made again."""
    for parent in folder.absolute().parents:
        first = folder.absolute().relative_to(parent).parts[0]
        for what, mark, names in (("cache", NAME, FILES), ("run", CONFIG, RUN_FILES)):
            if first in names and (parent / mark).is_file():
                raise EdistillError(
                    f"{folder} lies in {parent}, a {what} that removes its {first} when it is made again. Name another "
                    f"folder in {key}."
                )


def refuse_foreign(folder: Path, mark: str, what: str, key: str) -> None:
    """Raise EdistillError if `folder` is a file, has contents of others, or lies where it would be deleted."""
    refuse_within(folder, key)
    refuse_no_folder(folder, key)
    if folder.is_dir() and not os.path.lexists(folder / mark):
        others = [path.name for path in folder.iterdir() if path.name != f"{mark}.part" and _holds_something(path)]
        if others:
            raise EdistillError(
                f"{folder} exists and is not {what} (it holds {', '.join(sorted(others)[:3])}). Name another folder in "
                f"{key}, or move it away."
            )


def _holds_something(path: Path) -> bool:
    """Whether a path is a file, or a folder that contains one.

    Locks do not count, since a refused command leaves them behind, nor do the temporary files of a killed writer.
    """
    files = [path] if path.is_file() else path.rglob("*")
    return any(file.is_file() and file.name != LOCK and not is_temporary(file) for file in files)


def run_folder(settings: Settings) -> Path:
    """The run's folder: output.runs/METHOD-sSEED, or output.runs and the name in the settings."""
    name = settings.output.name
    if name is None:
        method = settings.train.method.rpartition(":")[2]
        name = f"{method}-s{settings.train.seed}"
    return Path(settings.output.runs) / name


def refuse_no_run(folder: Path) -> None:
    """Raise EdistillError if a run may not be written to a folder: others' contents, a cache, or a chain."""
    refuse_foreign(folder, ARGS, "a run", "output.runs or --name")
    if (folder / NAME).is_file():
        raise EdistillError(f"{folder} is a cache, and a run needs a folder of its own. Choose another --name.")
    if is_chain(folder):
        raise EdistillError(
            f"{folder} is a chain of generations, and a run needs a folder of its own. Choose another --name, or pass "
            "--generations."
        )


def refuse_trial(runs: Iterable[Run], limit: int | None) -> None:
    """Raise EdistillError if a trial with `limit` would overwrite results in a run that was made without.

    Args:
        limit: maximum number of rows in the settings; None if this is no trial.
    """
    for run in runs:
        if limit is not None and run.keeps and limit_of(run.folder) is None:
            raise EdistillError(
                f"{run.folder} was made without limit, and limit is {limit}: what a trial makes would replace what is "
                "there. Leave limit out, or name a run that was made with it."
            )
