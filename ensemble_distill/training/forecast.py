"""Forecast of a training's time and disk space, from a few timed steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ensemble_distill.runtime.disk import free_bytes
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import bytes_told, counted, duration
from ensemble_distill.training.loop import KEPT, Training

WORTH_TIMING = 100  # steps; in a shorter training the timed ones would be a large part
WORTH_SAYING = 1.5  # slowdown by lower precision, which is meant to be faster


def training_seconds(training: Training, of_batch: Sequence[float], validated: int) -> float:
    """Seconds from the first step to the last.

    Args:
        of_batch: result of `Training.seconds_a_batch`.
        validated: rows of the validation split; 0 if there is none.
    """
    settings = training.setup.settings
    views = len(training.feed.rows) * training.feed.order.views
    rendered = min(training.steps, views / settings.batch_size if training.keeps_rows else math.inf)
    return seconds_of(of_batch, training.steps, rendered, validated / settings.batch_size, settings.epochs)


def seconds_of(of_one: Sequence[float], trained: float, rendered: float, validated: float, epochs: int) -> float:
    """Seconds of a training. Rows are counted either in batches or one by one.

    Args:
        of_one: seconds of an update, of a pass without gradients, and of rendering.
        trained, rendered: total over all epochs.
        validated: size of the validation split.
    """
    update, asked, rendering = of_one
    return trained * update + rendered * rendering + min(KEPT, epochs) * validated * (asked + rendering)


def tell_training(training: Training, validated: int, progress: Progress) -> None:
    """Report the size of a training before its first step.

    A long training also reports its time and disk space, and warns if lower precision is slower or the disk too small.
    A resumed or short one reports only its epochs and steps.
    """
    if not training.steps:
        return
    each, order = training.feed.order.steps_per_epoch, training.feed.order
    what = f"{counted(training.steps // each, 'epoch')} of {counted(each, 'step')}"
    if training.steps < WORTH_TIMING or training.place.begun:
        progress.note(f"{what}.")
        return
    seconds = training_seconds(training, training.seconds_a_batch(), validated)
    space = sum(training.sizes())
    folder = training.place.folder
    free = free_bytes(folder)
    rows = f"{counted(order.rows, 'row')} in {counted(order.views, 'view')}"
    progress.note(f"{what}, {rows}: about {duration(seconds)} and {bytes_told(space)} of {bytes_told(free)} free.")
    if training.setup.settings.amp and (times := training.slowed_by_amp()) > WORTH_SAYING:
        progress.warn(
            f"train.amp computes in {training.setup.settings.amp_dtype}, in which this device takes {times:.1f} times "
            "as long as in float32. To be faster, stop and start again with --no-amp --overwrite."
        )
    if space > free:
        progress.warn(
            f"The disk of {folder} has {bytes_told(free)} left, and the run fills about {bytes_told(space)}. Make "
            "room, or set output.runs to another disk: an interrupted training goes on."
        )
