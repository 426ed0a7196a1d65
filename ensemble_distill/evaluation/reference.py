"""What a student says of the calibration rows, by which `predict` judges others.

They are rows that nobody was trained on and no choice hangs on. No other split takes their place: on the validation
rows choices were made. All else of an evaluation and of an export stands without them.
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
    """A student, or an ensemble: a module from x (B, ...) to raw numbers (B, M, *shape) that knows what these mean."""

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
    """Of each run's student what it says; none, and it is told why, where the rows cannot serve. An exported file
    carries its own, by which it will judge.

    Args:
        students: in eval mode on the device.
        splits: the configured ones; labels index the runs' classes.
        evaluated: the rows that will show what is kept and covered, which are to be others.
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
    """What one student on the CPU says; None as `references` says none."""
    return next(iter(references([run], [student], splits, torch.device("cpu"), workers, progress)), None)


def reference_of_members(
    task: Task, ensemble: Speaks, to: AnyPreprocessing | None, splits: Splits, workers: int, progress: Progress
) -> Reference | None:
    """What an ensemble on the CPU says; None as `references`."""
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
    """What is said of the rows of a split, or of evenly spread ones where they are many.

    Args:
        speaks: a module in eval mode on the device.
        to: how it wants its inputs.

    Raises:
        EdistillError: it says numbers that are not finite.
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
    """An error here ends nothing else."""
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
