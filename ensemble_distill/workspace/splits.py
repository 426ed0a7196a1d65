"""From settings to opened splits, the same way for every command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble_distill.data import open_source
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.renamed import by_name
from ensemble_distill.data.rendition import pushes
from ensemble_distill.data.source import Source
from ensemble_distill.data.views import open_view, require_kind
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime.factories import portable
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import PreprocessingSettings, Settings
from ensemble_distill.teachers import open_teachers
from ensemble_distill.teachers.teacher import Context, Teacher

TRAINED = ("train", "transfer")  # the splits with views; the others are seen as they are


def open_split(settings: Settings, name: str) -> Source:
    """One configured split. Raises EdistillError when it is not configured, cannot be opened, or is empty."""
    entry = settings.splits().get(name)
    if entry is None:
        known = ", ".join(settings.splits()) or "none at all"
        raise EdistillError(f"data.{name.replace('/', '.')} is not set (there are: {known}). Set it in edistill.toml.")
    try:
        source = open_source(entry, settings.task)
    except EdistillError as error:
        raise EdistillError(f"data.{name.replace('/', '.')}: {error}") from error
    if len(source) == 0:
        raise EdistillError(f"data.{name.replace('/', '.')} has no rows. Give a split with at least one.")
    return source


def plan_split(settings: Settings, name: str, source: Source | None = None) -> SplitPlan:
    """A split with the views that the settings give it."""
    source = source or open_split(settings, name)
    if name not in TRAINED:
        return SplitPlan(source, open_view("none", None), "none", 0, 1)
    views = settings.views
    view = open_view(views.transform, source.scale)
    if pushes(view) and settings.task == "regression":
        raise EdistillError(
            f"views.transform is {views.transform!r}, which moves inputs along the gradients of probabilities, and the "
            "task is regression. Take ods or confods out of it; noise acts on any data."
        )
    require_kind(view, source.kind, views.transform)
    if views.transform == "none":  # all views are the same picture, whatever the seed: one says it all
        return SplitPlan(source, view, "none", 0, 1)
    return SplitPlan(source, view, portable(views.transform), views.seed, views.count)


def plan_splits(
    settings: Settings, names: Iterable[str] | None = None, known: tuple[str, ...] | None = None
) -> dict[str, SplitPlan]:
    """All configured splits, or those named, whose labels index the ensemble's classes.

    Args:
        known: the classes of a cache that is there, which has asked about more splits.

    Raises:
        EdistillError: none is configured, one cannot be opened, or one has a class that the others lack.
    """
    plans = {name: plan_split(settings, name) for name in (names or settings.splits())}
    if not plans:
        raise EdistillError(
            "There is no data: set data.train, and better data.validation and data.test, in edistill.toml."
        )
    sources = {name: plan.source for name, plan in plans.items()}
    refuse_unlike(sources)
    classes = class_names(sources, known)
    return {name: replace(plan, source=with_classes(plan.source, classes, name)) for name, plan in plans.items()}


def with_classes(source: Source, classes: tuple[str, ...] | None, name: str) -> Source:
    """A split whose labels index these classes, by their names; OOD rows keep their own."""
    return source if name.startswith("ood/") else by_name(source, classes, f"data.{name}")


def refuse_unlike(sources: Mapping[str, Source]) -> None:
    """Raise EdistillError for splits whose rows no one network can take."""
    (first, like), *others = sources.items()
    wanted = _held(like)
    for name, source in others:
        if (held := _held(source)) != wanted:
            raise EdistillError(
                f"data.{name.replace('/', '.')} holds {held}, and data.{first.replace('/', '.')} {wanted}. Give rows "
                "like those."
            )


def _held(source: Source) -> str:
    """What a network is given of it; pixels may differ in size."""
    return "pixels" if source.kind == "pixels" else f"{source.kind} of {source.item(0).x.shape}"


def tell_remarks(sources: Mapping[str, Source], progress: Progress) -> None:
    """Warn of what reading each split passed over; of OOD rows nobody asks for labels."""
    for name, source in sources.items():
        if not name.startswith("ood/") or source.labels is not None:
            for remark in source.remarks:
                progress.warn(f"data.{name.replace('/', '.')}: {remark}")


def class_names(sources: Mapping[str, Source], known: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
    """The ensemble's class names: those of the first split that has most, since others may lack some; or those that
    are known, where they are these and more. None where no split has names."""
    named = [s.classes for name, s in sources.items() if s.classes is not None and not name.startswith("ood/")]
    found = max(named, key=len, default=None)
    return known if found is not None and known is not None and set(found) <= set(known) else found


def trusted_by(settings: Settings, everything: bool = False, own_runs: Path | None = None) -> Trust:
    """What the settings' user trusts.

    Args:
        everything: runs from anywhere (`--trust-checkpoints`).
        own_runs: where the user's own runs stand; output.runs by default.
    """
    return Trust(own_runs or Path(settings.output.runs), settings.student.model, everything)


def open_ensemble(
    settings: Settings,
    classes: tuple[str, ...] | None,
    trust: bool | Trust = False,
    progress: Progress | None = None,
) -> list[Teacher]:
    """The members in `teachers.path`, for data of these class names; see `open_teachers`."""
    names = classes if settings.task == "classification" else None  # numbers are no index of them
    trusted = trust if isinstance(trust, Trust) else trusted_by(settings, trust)
    context = Context(settings.teachers, names, trusted.everything, settings.task, progress or Silent(), trusted)
    return open_teachers(Path(settings.teachers.path), context)


def student_preprocessing(asked: PreprocessingSettings | None, first: Preprocessing | None) -> Preprocessing | None:
    """The first member's, with what the settings say instead."""
    if asked is None:
        return first
    given: dict[str, Any] = {name: value for name, value in asked if value is not None}
    if max(len(given.get(name, ())) for name in ("mean", "std")) > 1:
        given["channels"] = None  # the student sees the colors that a first member of one channel does not
    if first is not None:
        return replace(first, **given)
    lacking = [name for name in ("size", "mean", "std") if name not in given]
    if lacking:
        raise EdistillError(
            f"student.preprocessing lacks {', '.join(lacking)}, and the members have none to fill it. "
            "Give size, mean and std."
        )
    return Preprocessing(**given)
