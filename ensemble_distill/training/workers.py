"""The default number of loader processes that render the rows of a training."""

from __future__ import annotations

import time
from dataclasses import replace

from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.workers import SECONDS, at_once, by_trial, offered, rate_of
from ensemble_distill.training.forecast import WORTH_TIMING
from ensemble_distill.training.loop import Training

FEWEST = 8  # rows per step in a trial: BatchNorm needs several


def try_workers(training: Training, progress: Progress) -> None:
    """Render rows in loader processes if a trial of a few steps finds that faster.

    There is no trial on a GPU, which has its own rule; under torchrun, whose processes step together; for a body that
    torch compiles, which the trial would compile once more; in short trainings; or if rendered rows are kept.
    """
    feed, compiled = training.feed, training.setup.settings.torchcompile is not None
    if feed.device.type != "cpu" or ranks.several() or training.steps < WORTH_TIMING or compiled:
        return
    update, _, rendering = training.seconds_a_batch()
    if training.keeps_rows:
        return
    size = feed.order.batch_size
    of_row = rendering / size, update / size
    few = max(min(FEWEST, size), at_once(*of_row, size))
    processes = offered(*of_row, training.steps * size)
    steps = _warmed(training, few) if processes else 0
    training.load_by(by_trial("training", processes, lambda n: rate_of(training.trial(n, few, steps)), progress))


def _warmed(training: Training, size: int) -> int:
    """The number of steps in a trial, after reading their rows once.

    From its second epoch on a training finds its files in memory, so the trial should too.
    """
    feed, until = training.feed, time.monotonic() + SECONDS
    order = replace(feed.order, batch_size=size)
    steps = 0
    while steps < order.steps_per_epoch and time.monotonic() < until:
        for index in order.batch(steps):
            feed.rows[index]
        steps += 1
    return steps
