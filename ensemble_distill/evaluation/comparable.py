"""Checks that runs can be evaluated together, and on given rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ensemble_distill.cache.manifest import abbreviated
from ensemble_distill.data.rows import first_input
from ensemble_distill.data.several import held, of_pairs
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.run import Run

MEMBER = ("name", "sha256", "output", "class_order", "preprocessing", "units", "variance")


def refuse_unlike(runs: Sequence[Run]) -> None:
    """Raise EdistillError if runs differ in task, ensemble or data, or if one is given twice."""
    first = runs[0]
    for position, run in enumerate(runs[1:], start=1):
        if run.folder.resolve() in {other.folder.resolve() for other in runs[:position]}:
            raise EdistillError(f"{run.folder} is given twice. Name each run once.")
        for what, there, here in _shared(first.config, run.config):
            if there != here:
                raise EdistillError(
                    f"{first.folder} and {run.folder} cannot stand in one table: {what} is {abbreviated(there)} for "
                    f"the one and {abbreviated(here)} for the other. Evaluate them apart."
                )


def _shared(one: StudentConfig, other: StudentConfig) -> Iterator[tuple[str, object, object]]:
    """What runs of one ensemble must have in common: a name, and its values in both runs."""
    yield "the task", one.architecture.task.key, other.architecture.task.key
    theirs, others = one.provenance, other.provenance
    yield "the number of members", len(theirs.members), len(others.members)
    for index, (a, b) in enumerate(zip(theirs.members, others.members, strict=True)):
        for what in MEMBER:
            yield f"the {what} of member {index}", getattr(a, what), getattr(b, what)
    for what in ("average", "weights"):
        yield f"the members' {what}", getattr(one.architecture, what), getattr(other.architecture, what)
    task, their_task = one.architecture.task, other.architecture.task
    yield "the members' classes", task.names, their_task.names
    yield "what the members answer", task, their_task
    for split in theirs.trained_on.keys() & others.trained_on.keys():
        yield f"the {split} data", theirs.trained_on[split], others.trained_on[split]


def open_for(runs: Sequence[Run], splits: Mapping[str, Source], split: str) -> Source:
    """A split whose rows fit every run's student and whose labels fit its task.

    Raises:
        EdistillError: the split is not configured, or its rows or labels do not fit.
    """
    source = splits[split]
    for run in runs:
        _refuse_misfit(run, source, split)
    return source


def _refuse_misfit(run: Run, source: Source, split: str) -> None:
    student = run.architecture
    named, wants = f"data.{split.replace('/', '.')}", f"{run.folder} takes {student.kind} of {student.shape}"
    columns = run.provenance.columns
    pairs = columns is not None and len(columns.texts) == 2
    if source.kind != student.kind or (source.kind == "text" and of_pairs(source) != pairs):
        raise EdistillError(f"{named} holds {held(source)}, and {wants}. Give rows like those it was trained on.")
    shape = tuple(first_input(source, student.preprocessing).shape[1:])
    if shape != student.shape:
        raise EdistillError(f"{named} gives inputs of {shape}, and {wants}. Give rows like those it was trained on.")
    if not split.startswith("ood/"):
        student.task.refuse_other_labels(source, named, str(run.folder))
