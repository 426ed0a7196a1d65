"""From settings to what is to be trained, and whether that is done already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ensemble_distill.logs import LogPlace, Logs, open_logs, refuse_unknown
from ensemble_distill.runs.args import refuse_other_settings, settings_of_run, write_args
from ensemble_distill.runs.chain import is_chain
from ensemble_distill.runs.folder import ARGS, CONFIG, FILES, LOGS, WEIGHTS
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.same import refuse_other_ensemble, refuse_other_method
from ensemble_distill.runtime.files import clear_folder, write_whole
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import Settings
from ensemble_distill.training import refusals
from ensemble_distill.training.asked import Asked
from ensemble_distill.training.budget import SettledTraining, settled
from ensemble_distill.training.train import Ready
from ensemble_distill.workspace.folders import refuse_no_run, run_folder
from ensemble_distill.workspace.learned import learned_from, trained_rows
from ensemble_distill.workspace.workspace import Workspace


def open_asked(workspace: Workspace, overwrite: bool, or_chain: bool = False) -> Asked:
    """What is to be trained. Raises EdistillError for what no cache could fix.

    Args:
        or_chain: whether it may be a chain, for what its first generation is.
    """
    settings = workspace.settings
    generations = settings.train.generations
    if not or_chain:
        refusals.refuse_generations(generations)
    refuse_unknown(settings.output.log)
    method, options = workspace.method
    folder = run_folder(settings)
    refusals.refuse_temperature(workspace.task, options)
    if generations is None:
        refuse_no_run(folder)
    else:
        refusals.refuse_no_chain(settings.train.method, method, options, settings.student, generations)
    refusals.refuse_bodiless(settings.student)
    train = settled_training(workspace)
    return Asked(folder, method, options, settings.student, train, settings.teachers, overwrite)


def settled_training(workspace: Workspace) -> SettledTraining:
    """`[train]` with the epochs and the learning rate that this training has."""
    method, options = workspace.method
    rows = partial(trained_rows, workspace, method.needed(options))
    return settled(workspace.settings.train, rows, workspace.settings.student.starts_near)


def recorded(settings: Settings, train: SettledTraining) -> Settings:
    """The settings as a run or a chain records them, with all training defaults filled in, since these may change."""
    return settings.model_copy(update={"train": train})


def finished(workspace: Workspace, asked: Asked) -> Run | None:
    """The existing run if it is finished and up to date; None if there is something to do.

    Raises:
        EdistillError: the existing run has other settings, another method or another ensemble.
    """
    folder, settings = asked.folder, workspace.settings
    # a folder with only settings is from a run that failed before its first save, whatever its settings
    if asked.overwrite or not any((folder / name).exists() for name in FILES if name not in (ARGS, CONFIG)):
        return None
    refuse_other_settings(folder, recorded(settings, asked.train))
    refuse_other_method(folder, asked.method.source, settings.train.method)
    if workspace.has_cache:
        cache = learned_from(workspace)
        digests = {name: split.digest for name, split in cache.manifest.splits.items()}
        # only later generations of a chain go on, and they learn from each other
        done = is_chain(folder.parent) and (folder / WEIGHTS).is_file()
        refuse_other_ensemble(folder, cache.folder, cache.manifest.members, digests, done=done)
    return Run.open(folder) if (folder / WEIGHTS).is_file() else None  # a finished run no longer needs its cache


def logs_of(settings: Settings, folder: Path, progress: Progress) -> Logs:
    """The logs in `output.log`, for the training in a run's folder. Raises EdistillError for an unknown log."""
    runs = Path(settings.output.runs).absolute()
    here = folder.absolute()
    name = str(here.relative_to(runs)) if here.is_relative_to(runs) else here.name
    place = LogPlace(folder / LOGS, runs.parent.name or "edistill", name, settings_of_run(settings))
    return open_logs(settings.output.log, place, progress)


def claim_folder(settings: Settings, asked: Asked, ready: Ready, claim: Callable[[], None]) -> None:
    """Take over the folder for this run: clear it with `overwrite`, then write its settings and config."""
    claim()
    if asked.overwrite:
        clear_folder(asked.folder, FILES, last=ARGS)
    write_args(asked.folder, recorded(settings, asked.train))
    write_whole(asked.folder / CONFIG, ready.config.content())
