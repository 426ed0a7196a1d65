"""From settings and data to a training that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.logs import Logs
from ensemble_distill.methods.method import Stage
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.starts.compressing import Compressing
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.training.asked import Asked, Learned
from ensemble_distill.training.checkpoint import RunPlace
from ensemble_distill.training.compressing import compressed
from ensemble_distill.training.feed import Feed, Pooling
from ensemble_distill.training.idle import IdleFacts, tell_idle_training
from ensemble_distill.training.loop import Setup, Training
from ensemble_distill.training.order import Order, afforded, boundaries
from ensemble_distill.training.partial import answered_rows
from ensemble_distill.training.plateau import refuse_no_validation
from ensemble_distill.training.refusals import (
    refuse_broken,
    refuse_compiled_together,
    refuse_double,
    refuse_one_member,
    refuse_rowless,
)
from ensemble_distill.training.rows import CachedRows, TeacherOutputs
from ensemble_distill.training.sampled import from_samples
from ensemble_distill.training.student import Begun, begin_student, config_of
from ensemble_distill.training.validation import validation


@dataclass(frozen=True)
class Machine:
    """What a training runs on, and where it reports progress.

    Attributes:
        workers: processes that render rows.
        given: whether a dotted key of the settings was given.
    """

    device: torch.device
    workers: int
    progress: Progress
    given: Callable[[str], bool]


@dataclass(frozen=True)
class Ready:
    """A student ready to be trained: all but its weights is known."""

    config: StudentConfig
    begun: Begun
    stages: tuple[Stage, ...]
    feed: Feed


def prepare(asked: Asked, learned: Learned, machine: Machine) -> Ready:
    """Build what is to be trained, without writing anything.

    Raises:
        EdistillError: the student cannot be built, or the method's stages do not fit it.
    """
    refuse_no_validation(asked.train, learned.validation is not None)
    asked = from_samples(asked, learned, machine.given, machine.progress)
    refuse_one_member(asked.train.method, asked.method, learned.cache.manifest.names, asked.train.teacher)
    rows, settings = CachedRows(list(learned.splits.values()), learned.preprocessing), asked.train
    outputs = TeacherOutputs(list(learned.splits.values()))
    at = answered_rows(asked, learned, outputs, machine.progress)
    count = len(rows) if at is None else len(at)
    views = learned.splits["train"].records.views
    refuse_rowless(count, settings.batch_size)
    order = Order(count, views, settings.batch_size, settings.seed, ranks.current(), at)
    torch.manual_seed(settings.seed)
    begun = begin_student(asked, learned, _some(rows))
    refuse_double(settings.method, begun.architecture.family, machine.device)
    members = len(learned.cache.manifest.members)
    steps = settings.epochs * order.steps_per_epoch
    asked = replace(asked, options=asked.method.timed(asked.options, steps))
    stages = afforded(asked.method.stages(asked.options, members), steps)
    refuse_broken(settings.method, stages, begun.student, begun.architecture, begun.start is not None)
    normalizes = any(map(normalizes_batches, begun.student.modules()))
    refuse_compiled_together(settings, normalizes and not asked.freezes)
    facts = IdleFacts(settings, learned.sources, asked.method, asked.options, stages, normalizes, steps)
    tell_idle_training(facts, machine.given, machine.progress)
    architecture = begun.architecture
    partial = outputs.partial or (learned.validation is not None and learned.validation.records.partial)
    sampled = learned.splits["train"].records.sampled
    pooling = Pooling(learned.task, architecture.pooling(), architecture.average, partial, sampled)
    feed = Feed(rows, outputs, order, pooling, machine.device, machine.workers)
    if asked.student.compresses:  # may take minutes: first refuse what the training would refuse
        boundaries(stages, steps)
        begun = compressed(asked, begun, Compressing(feed.sample, feed.shape, machine.device, machine.progress))
    return Ready(config_of(asked, learned, begun.architecture), begun, stages, feed)


def training_of(
    ready: Ready, asked: Asked, learned: Learned, progress: Progress, claim: Callable[[], None], log: Logs
) -> Training:
    """The training itself.

    Args:
        claim: takes over the run folder, see `RunPlace`.
        log: where figures go.
    """
    begun, split = ready.begun, learned.validation
    return Training(
        Setup(
            student=begun.student,
            stages=ready.stages,
            feed=ready.feed,
            settings=asked.train.model_copy(update={"freeze_bn": asked.freezes}),
            place=RunPlace(asked.folder, claim, replacing=asked.overwrite),
            progress=progress,
            log=log,
            validate=None if split is None else validation(split, learned.preprocessing, ready.feed, asked.needs),
            start=begun.start,
        )
    )


def _some(rows: CachedRows) -> Tensor:
    """A few training rows as the student sees them, (B, …)."""
    return torch.from_numpy(np.stack([rows[row, 0].x for row in some_rows(len(rows))]))
