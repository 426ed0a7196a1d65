"""`edistill train`: a student from the cache, by a method."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from ensemble_distill.logs import Logs
from ensemble_distill.runs.folder import ARGS, CHECKPOINT, CONFIG, WEIGHTS
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.job import opened
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.shared import see_as_first
from ensemble_distill.settings import Settings
from ensemble_distill.settings.idle import is_given
from ensemble_distill.training import refusals
from ensemble_distill.training.convergence import tell_still_falling
from ensemble_distill.training.forecast import tell_training
from ensemble_distill.training.loop import Training
from ensemble_distill.training.report import TrainReport
from ensemble_distill.training.train import Machine, prepare, training_of
from ensemble_distill.training.workers import try_workers
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.alike import refuse_differing_settings, refuse_differing_students, see_cache
from ensemble_distill.workspace.folders import run_folder
from ensemble_distill.workspace.learned import open_learned, tell_not_stored, trained_splits
from ensemble_distill.workspace.training import claim_folder, finished, logs_of, open_asked


def train(
    settings: Settings,
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Train the configured student; an interrupted run resumes, and a finished one is left as it is.

    For several generations use `train_chain`.

    Args:
        overwrite: replace the existing run, once the new one has a checkpoint.
        trust: load pickled checkpoints that name arbitrary globals.

    Raises:
        EdistillError: the cache is missing, unfinished, damaged or of other data, members or views; the run was made
            with other settings; the student or the method cannot be built.
    """
    with opened(settings.train.peer_timeout):
        return train_in(Workspace(settings, progress or Silent(), trust), overwrite=overwrite)


def train_in(
    workspace: Workspace,
    *,
    overwrite: bool = False,
    begin: Callable[[Training], None] | None = None,
    claim: Callable[[], None] = lambda: None,
) -> TrainReport:
    """Train the student of a run, or of a generation of a chain; see `train`.

    Args:
        begin: called with the training before its first step, when nothing has been written yet.
        claim: called just before the run's folder is taken over and a run to be replaced is deleted.
    """
    started, settings = time.monotonic(), workspace.settings
    refuse_differing_settings(workspace, "train", overwrite)
    see_cache(workspace.cache_folder)
    see_as_first(run_folder(settings) / name for name in (ARGS, CONFIG, WEIGHTS, CHECKPOINT))
    asked = open_asked(workspace, overwrite)
    ranks.wait()  # until all processes have read the folder

    def there(locked: bool) -> TrainReport | None:
        if not locked and not (asked.folder / WEIGHTS).is_file():
            return None
        run = finished(workspace, asked)
        return None if run is None else TrainReport.of(run, run.student(trust=workspace.trusted), None, started)

    # first without the lock: a finished run may be in a read-only folder
    if (report := ranks.of_first(partial(there, False))) is not None:
        return report
    with one_writer(asked.folder) if ranks.is_first() else nullcontext():
        if (report := ranks.of_first(partial(there, True))) is not None:
            return report
        logs = logs_of(settings, asked.folder, workspace.progress) if ranks.is_first() else Logs()
        plans = trained_splits(workspace)
        tell_not_stored(workspace, plans)
        labeled = plans["train"].source.labels is not None
        refusals.refuse_unlabeled(settings.train.method, asked.method, asked.options, settings.method, labeled)
        learned = open_learned(workspace, plans, asked.needs)
        given = partial(is_given, settings)
        ready = prepare(asked, learned, Machine(workspace.device, workspace.workers, workspace.progress, given))
        refuse_differing_students(ready)
        claiming = partial(claim_folder, settings, asked, ready, claim)
        training = training_of(ready, asked, learned, workspace.progress, claiming, logs)
        if settings.train.workers is None:
            try_workers(training, workspace.progress)
        validated = 0 if learned.validation is None else len(learned.validation.source)
        (begin or partial(tell_training, validated=validated, progress=workspace.progress))(training)
        student = training.run().eval()

        def ended() -> TrainReport:
            run = Run.save(asked.folder, ready.config.ended(training.still_falling), student.cpu())
            tell_still_falling(run, workspace.progress)
            return TrainReport.of(run, student, training.resumed_at, started)

        return ranks.of_first(ended)
