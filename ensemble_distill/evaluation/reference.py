"""A student's outputs on the calibration rows, against which `predict` judges other rows.

No model was trained on the calibration rows, and no choice was made on them. No other split takes their place, since
choices are made on the validation rows. Everything else in an evaluation or an export works without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ensemble_distill.data.batches import plain_batches
from ensemble_distill.data.source import Array, Source, positions_of
from ensemble_distill.data.subset import Subset
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.calibrating import refuse_few, refuse_seen
from ensemble_distill.evaluation.comparable import open_for
from ensemble_distill.evaluation.rows import Answers
from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.predictive.outputs import named_outputs
from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.spread import spread
from ensemble_distill.tasks import Task
from ensemble_distill.tasks.reference import Reference, most_rows, reference_of

SPLIT = "calibration"

Splits = Mapping[str, Source]


class Speaks(Protocol):
    """A student or an ensemble: a module from x (B, ...) to raw numbers (B, M, *shape) that knows what they mean."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def predictive(self, raw: Tensor) -> Predictive: ...


def references(
    runs: Sequence[Run],
    students: Sequence[Speaks],
    splits: Splits,
    device: torch.device,
    workers: int,
    progress: Progress,
    evaluated: Source | None = None,
) -> list[Reference]:
    """The reference of each run's student; empty, with a message, if the calibration rows cannot be used.

    An exported file carries its own reference, which it will use when it predicts.

    Args:
        runs: the runs.
        students: their students, in eval mode on the device.
        splits: the configured splits; labels index the runs' classes.
        device: the device.
        workers: the number of processes that read rows.
        progress: where to report progress.
        evaluated: the rows on which coverage will be reported, which must not be the calibration rows.
    """
    carried = [run.carries for run in runs if run.carries is not None]
    if SPLIT not in splits:
        return carried if len(carried) == len(runs) else []
    with _or_warned(progress):
        source = splits[SPLIT]
        if evaluated is not None and source.digest == evaluated.digest:
            progress.note("Nothing is said of coverage: these are the calibration rows themselves.")
        elif len(carried) == len(runs):
            return carried
        else:
            for run in runs:
                refuse_seen(run, open_for([run], splits, SPLIT), SPLIT)
            refuse_few(runs[0].architecture.task, source, SPLIT)
            _warn_of_choices(splits, source, progress)
            with_what = (source, device, workers, progress)
            return [
                run.carries or ask(run.architecture.task, student, run.architecture.preprocessing, *with_what)
                for run, student in zip(runs, students, strict=True)
            ]
    return []


def reference_of_run(run: Run, student: Speaks, splits: Splits, workers: int, progress: Progress) -> Reference | None:
    """The reference of one student on the CPU; None in the cases in which `references` returns none."""
    return next(iter(references([run], [student], splits, torch.device("cpu"), workers, progress)), None)


def reference_of_members(
    task: Task, ensemble: Speaks, to: AnyPreprocessing | None, splits: Splits, workers: int, progress: Progress
) -> Reference | None:
    """The reference of an ensemble on the CPU; None, with a message, if the calibration rows cannot be used."""
    with _or_warned(progress):
        if SPLIT in splits:
            source = splits[SPLIT]
            refuse_few(task, source, SPLIT)
            if "train" in splits and splits["train"].digest == source.digest:
                raise EdistillError("data.calibration is data.train: set it to rows that no member was trained on.")
            _warn_of_choices(splits, source, progress)
            return ask(task, ensemble, to, source, torch.device("cpu"), workers, progress)
    return None


@torch.no_grad()
def ask(
    task: Task,
    speaks: Speaks,
    to: AnyPreprocessing | None,
    source: Source,
    device: torch.device,
    workers: int,
    progress: Progress,
) -> Reference:
    """The reference from a module's outputs on the rows of a split, or on evenly spaced ones if there are many.

    Args:
        task: its task.
        speaks: the module, in eval mode on the device.
        to: its preprocessing.
        source: the rows.
        device: the device.
        workers: the number of processes that read rows.
        progress: where to report progress.

    Raises:
        EdistillError: an output is not finite.
    """
    count = max(1, most_rows(task) // (positions_of(source) or 1))
    some = source if len(source) <= count else Subset(source, np.array(spread(len(source), count), np.int64))

    def batches() -> Iterator[tuple[dict[str, Array], Array | None]]:
        for rows, (x,) in plain_batches(some, [to], workers, device):
            answers = Answers(task, some.labels, rows)
            said = named_outputs(speaks.predictive(answers.of(speaks(x).cpu().double())))
            labels = None if answers.labels is None else answers.labels.numpy()
            yield {name: values.numpy() for name, values in said.items()}, labels
            progress.advance(len(rows))

    progress.start(f"asking about {SPLIT}", total=len(some), unit="rows")
    try:
        return reference_of(task, batches())
    except ValueError as error:
        raise EdistillError(f"Of data.{SPLIT} it says numbers that cannot be used: {error}.") from None
    finally:
        progress.finish()


@contextmanager
def _or_warned(progress: Progress) -> Iterator[None]:
    """Turn an EdistillError into a warning, since everything else works without a reference."""
    try:
        yield
    except EdistillError as error:
        progress.warn(f"Nothing is said of coverage. {error}")


def _warn_of_choices(splits: Splits, source: Source, progress: Progress) -> None:
    if "validation" in splits and splits["validation"].digest == source.digest:
        progress.warn(
            "data.calibration is data.validation, where choices were made: of other rows less may be kept and covered "
            "than is said. Give data.calibration rows of its own."
        )
