"""`edistill train`: a student from the cache, by a method."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ensemble_distill.runs.args import refuse_other_settings, write_args
from ensemble_distill.runs.folder import ARGS, CONFIG, FILES, WEIGHTS
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.same import refuse_other_ensemble, refuse_other_method
from ensemble_distill.runtime.files import clear_folder, write_whole
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.settings.idle import is_given
from ensemble_distill.students.student import Student
from ensemble_distill.training import refusals
from ensemble_distill.training.asked import Asked
from ensemble_distill.training.loop import Training
from ensemble_distill.training.train import Machine, Ready, prepare, training_of
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.folders import refuse_no_run, run_folder
from ensemble_distill.workspace.learned import learned_from, open_learned, trained_splits


@dataclass(frozen=True)
class TrainReport:
    """A finished run, and what this call did for it."""

    folder: Path
    method: str
    heads: int
    parameters: int
    fresh: bool  # False: it was up to date
    resumed_at: int  # the step an interrupted training went on from; 0 for a new one
    seconds: float


def train(
    settings: Settings,
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    begin: Callable[[Training], None] | None = None,
    claim: Callable[[], None] = lambda: None,
    own_runs: Path | None = None,
) -> TrainReport:
    """Train the configured student; an interrupted run resumes, a finished one is left as it is.

    Several generations are `train_chain`'s.

    Args:
        overwrite: replace the run that is there, once the new one has a checkpoint.
        trust: load pickled checkpoints that name arbitrary globals.
        begin: is given the training before its first step, when nothing has been written yet.
        claim: is called just before the run's folder is made its own, and the run that is to be replaced goes.
        own_runs: where runs stand whose code may make their bodies; output.runs by default.

    Raises:
        EdistillError: the cache is missing, unfinished, damaged or of other data, members or views; the run was
            made with other settings; the student or the method cannot be built.
    """
    started = time.monotonic()
    workspace = Workspace(settings, progress or Silent(), trust, own_runs)
    asked = _asked(workspace, overwrite)
    # first without the lock: what is finished may stand where nobody may write
    if (asked.folder / WEIGHTS).is_file() and (run := _finished(workspace, asked)) is not None:
        return _report(run, run.student(trust=workspace.trusted), None, started)
    with one_writer(asked.folder):
        if (run := _finished(workspace, asked)) is not None:
            return _report(run, run.student(trust=workspace.trusted), None, started)
        plans = trained_splits(workspace)
        labeled = plans["train"].source.labels is not None
        refusals.refuse_unlabeled(settings.train.method, asked.method, asked.options, settings.method, labeled)
        learned = open_learned(workspace, plans, asked.needs)
        given = partial(is_given, settings)
        ready = prepare(asked, learned, Machine(workspace.device, workspace.workers, workspace.progress, given))
        claiming = partial(_claim, settings, asked, ready, claim)
        training = training_of(ready, asked, learned, workspace.progress, claiming)
        if begin is not None:
            begin(training)
        student = training.run().eval()
        run = Run.save(asked.folder, ready.config, student.cpu())
        return _report(run, student, training.resumed_at, started)


def _asked(workspace: Workspace, overwrite: bool) -> Asked:
    """What is to be trained. Raises EdistillError for what no cache could mend."""
    settings = workspace.settings
    refusals.refuse_generations(settings.train.generations)
    method, options = workspace.method
    folder = run_folder(settings)
    refusals.refuse_temperature(workspace.task, options)
    refuse_no_run(folder)
    refusals.refuse_bodiless(settings.student)
    refusals.refuse_several_processes()
    return Asked(folder, method, options, settings.student, settings.train, settings.teachers, overwrite)


def _finished(workspace: Workspace, asked: Asked) -> Run | None:
    """The run that is there and up to date; None where there is something to do.

    Raises:
        EdistillError: a run of other settings, of another method or ensemble is there.
    """
    folder, settings = asked.folder, workspace.settings
    # one that failed at its first step may be another's
    if asked.overwrite or not any((folder / name).exists() for name in FILES if name not in (ARGS, CONFIG)):
        return None
    refuse_other_settings(folder, settings)
    refuse_other_method(folder, asked.method.source, settings.train.method)
    if workspace.has_cache:
        cache = learned_from(workspace)
        digests = {name: split.digest for name, split in cache.manifest.splits.items()}
        refuse_other_ensemble(folder, cache.folder, cache.manifest.members, digests)
    return Run.open(folder) if (folder / WEIGHTS).is_file() else None  # finished: it no longer needs its cache


def _claim(settings: Settings, asked: Asked, ready: Ready, claim: Callable[[], None]) -> None:
    """Make the folder this run's own."""
    claim()
    if asked.overwrite:
        clear_folder(asked.folder, FILES, last=ARGS)
    write_args(asked.folder, settings)
    write_whole(asked.folder / CONFIG, ready.config.content())


def _report(run: Run, student: Student, resumed_at: int | None, started: float) -> TrainReport:
    """Of a run that was trained now from that step on; None for one that was there."""
    return TrainReport(
        folder=run.folder,
        method=run.provenance.method,
        heads=run.architecture.heads,
        parameters=sum(p.numel() for p in student.parameters()),
        fresh=resumed_at is not None,
        resumed_at=resumed_at or 0,
        seconds=time.monotonic() - started,
    )
