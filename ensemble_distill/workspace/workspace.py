"""What a command opens once, from its settings. Functions below it take splits, members, cache and device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.data import may_be_several, open_source
from ensemble_distill.data.decoded import Decoded, Pictures, decodes, open_pictures
from ensemble_distill.data.decoded_blocks import is_stored
from ensemble_distill.data.folds import HeldOut, read_folds
from ensemble_distill.data.notes import NAME as NOTES
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.portions import Rule, portions
from ensemble_distill.data.rendition import pushes
from ensemble_distill.data.several import arrays_of
from ensemble_distill.data.source import Source
from ensemble_distill.data.subset import Limited, Subset
from ensemble_distill.data.views import in_units, open_view, require_kind
from ensemble_distill.data.vocabulary import Reading
from ensemble_distill.errors import EdistillError, meant
from ensemble_distill.facts import HELD_OUT, TRAINED, InputColumns, RowArray, split_key
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime.factories import portable
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.spread import spread
from ensemble_distill.settings import Settings
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.workspace.splits import class_names, refuse_unlike, with_classes

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

    from ensemble_distill.methods.method import Method
    from ensemble_distill.settings.sections import DataSettings
    from ensemble_distill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Workspace:
    """A folder with an `edistill.toml`, as a command sees it.

    Attributes:
        settings: the settings from file and flags.
        progress: where progress is reported.
        trust: whether pickled checkpoints may name any globals, and runs from anywhere may run the code that they name.
        own_runs: the folder of the user's own runs, whose code may run; output.runs by default.
        pictures: the cache whose decoded images are read, with `cache.decoded`; output.cache by default.
        reads_decoded: whether stored decoded images are read; the command that stores them does not.
    """

    settings: Settings
    progress: Progress = field(default_factory=Silent)
    trust: bool = False
    own_runs: Path | None = None
    pictures: Path | None = None
    reads_decoded: bool = True

    @cached_property
    def task(self) -> type[Task]:
        return open_task(self.settings.task)

    @cached_property
    def method(self) -> tuple[Method, BaseModel]:
        """The method and its options. Raises EdistillError as `settled_method` does."""
        from ensemble_distill.methods import settled_method

        settings = self.settings
        return settled_method(settings.train.method, settings.method, self.task, settings.student.from_members)

    @cached_property
    def device(self) -> torch.device:
        """The device. Raises EdistillError if it does not exist."""
        from ensemble_distill.runtime.devices import resolve

        return resolve(self.settings.train.device)

    @cached_property
    def workers(self) -> int:
        """The number of loader processes."""
        from ensemble_distill.runtime.devices import loader_workers

        return loader_workers(self.settings.train.workers, self.device)

    @cached_property
    def trusted(self) -> Trust:
        """Whose code may build the bodies of runs."""
        settings = self.settings
        return Trust(self.own_runs or Path(settings.output.runs), settings.student.model, self.trust)

    @cached_property
    def reading(self) -> Reading:
        """How a text becomes rows."""
        tokens, train = self.settings.tokens, self.settings.data.train
        return Reading(
            unit=tokens.unit,
            window=tokens.window,
            context=tokens.window if tokens.context is None else tokens.context,
            vocabulary=tokens.vocabulary,
            built_from=train if train is None or isinstance(train, str) else train.source,
            size=tokens.size,
        )

    # --- splits -------------------------------------------------------------------------------------------------

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """The names of all configured splits, training first."""
        return tuple(self.settings.splits())

    def source(self, name: str) -> Source:
        """The rows of one configured split.

        Raises:
            EdistillError: the split is not configured, cannot be opened, or is empty; or its stored decoded images are
                damaged or of other data.
        """
        entry = self.settings.splits().get(name)
        key = split_key(name)
        if entry is None:
            known = ", ".join(self.split_names) or "none at all"
            near = meant(name, self.split_names, "")
            raise EdistillError(
                f"{key} is not set (there are: {known}). {f'{near} Else set' if near else 'Set'} it in edistill.toml."
            )
        try:
            of = "train" if name == HELD_OUT else name
            source = self._portions[of] if of in self.settings.data.portions else self._opened(entry, of)
        except EdistillError as error:
            raise EdistillError(f"{key}: {error}") from error
        if len(source) == 0:
            raise EdistillError(f"{key} has no rows. Give a split with at least one.")
        stored = self._stored(of, self._limited(source))
        if name == HELD_OUT:
            source = HeldOut(source, self._folds(len(source)))
        return self._limited(source) if stored is None else Decoded(self._limited(source), stored)

    def _stored(self, name: str, source: Source) -> Pictures | None:
        """The decoded images of a split; None if they are not to be read, or not stored."""
        if not self.settings.cache.decoded or not self.reads_decoded or not decodes(source):
            return None
        cache = self.pictures or self.cache_folder
        return open_pictures(cache, name, len(source), source.digest) if is_stored(cache, name) else None

    def _opened(self, entry: DataSettings, name: str) -> Source:
        notes = self.cache_folder / NOTES
        return open_source(entry, self.task.key, self.reading, self.settings.data.columns, name, notes)

    @cached_property
    def _portions(self) -> dict[str, Source]:
        """The splits of one data set, which is opened only once."""
        data = self.settings.data
        assert data.all is not None
        assert data.split is not None
        return portions(self._opened(data.all, "all"), Rule(data.split.shares, data.split.seed))

    def _folds(self, rows: int) -> NDArray[np.int64]:
        """The fold of each training row. Raises EdistillError as `read_folds` does."""
        assert self.settings.teachers.folds is not None
        return read_folds(self.settings.teachers.folds, rows)

    def _limited(self, source: Source) -> Source:
        """Evenly spaced rows of a source, if the settings limit their number."""
        some = self._some_of(len(source))
        return source if some is None else Limited(source, some)

    def _some_of(self, rows: int) -> NDArray[np.int64] | None:
        limit = self.settings.limit
        return None if limit is None or rows <= limit else np.array(spread(rows, limit), np.int64)

    @cached_property
    def all_folds(self) -> NDArray[np.int64] | None:
        """The fold that each training row was held out of, regardless of the limit.

        None if the settings have no folds or no training rows. Raises EdistillError as `source` does.
        """
        if HELD_OUT not in self.split_names:
            return None
        source = self.source(HELD_OUT)
        source = source.inner if isinstance(source, Decoded) else source
        held = source.inner if isinstance(source, Subset) and not isinstance(source, HeldOut) else source
        assert isinstance(held, HeldOut)
        return held.folds

    @property
    def folds(self) -> NDArray[np.int64] | None:
        """`all_folds` for the rows within the limit."""
        found = self.all_folds
        some = None if found is None else self._some_of(len(found))
        return found if found is None or some is None else found[some]

    def split(self, name: str, source: Source | None = None) -> SplitPlan:
        """A split with the views of the settings. Raises EdistillError if these cannot act on its rows."""
        source = source or self.source(name)
        if name not in TRAINED:
            if name == HELD_OUT:
                return SplitPlan.plain(source, self.folds, self.all_folds)
            return SplitPlan.plain(source)
        views = self.settings.views
        scale = source.scale if in_units(views.transform) else None
        columns: InputColumns | None = getattr(source, "columns", None)
        view = open_view(
            views.transform,
            scale,
            getattr(source, "groups", None),
            arrays_of(source),
            None if columns is None else columns.places,
        )
        if pushes(view) and not self.task.one_class:
            raise EdistillError(
                f"views.transform is {views.transform!r}, which moves inputs along the gradients of probabilities, and "
                f"the task is {self.task.key}. Take ods or confods out of it; noise acts on any data."
            )
        require_kind(view, source.kind, views.transform)
        if views.transform == "none":  # all views are equal, whatever the seed, so one suffices
            return SplitPlan.plain(source)
        return SplitPlan(source, view, portable(views.transform), views.seed, views.count)

    def splits(self, names: Iterable[str] | None = None, known: tuple[str, ...] | None = None) -> dict[str, SplitPlan]:
        """All configured splits, or those named, with labels that index the ensemble's classes.

        Args:
            known: the classes of an existing cache, which may have been made from more splits.

        Raises:
            EdistillError: no split is configured, one cannot be opened, or one has a class that the others lack.
        """
        plans = {name: self.split(name) for name in (names or self.split_names)}
        if not plans:
            raise EdistillError(
                "There is no data: set data.train, and better data.validation and data.test, in edistill.toml."
            )
        sources = {name: plan.source for name, plan in plans.items()}
        refuse_unlike(sources)
        classes = class_names(sources, known) if self.task.one_class else None  # in other tasks labels are not indices
        return {name: replace(plan, source=with_classes(plan.source, classes, name)) for name, plan in plans.items()}

    # --- cache and members --------------------------------------------------------------------------------------

    @property
    def cache_folder(self) -> Path:
        return Path(self.settings.output.cache)

    @property
    def has_cache(self) -> bool:
        return (self.cache_folder / MANIFEST).is_file()

    @cached_property
    def cache(self) -> Cache:
        """The cache. Raises EdistillError if there is none, or it is damaged."""
        return Cache(self.cache_folder)

    @property
    def cached_names(self) -> tuple[str, ...] | None:
        """The classes of the existing cache; None if there is no cache."""
        return Manifest.load(self.cache_folder).classes if self.has_cache else None

    def ensemble(self, names: tuple[str, ...] | None) -> list[Teacher]:
        """The members in `teachers.path`, for data with these class names; see `open_teachers`."""
        from ensemble_distill.teachers import open_teachers
        from ensemble_distill.teachers.teacher import Context

        teachers = self.settings.teachers
        context = Context(teachers, names, self.trust, self.task.key, self.progress, self.trusted)
        arrays, pairs = self._rows
        return open_teachers(Path(teachers.path), replace(context, arrays=arrays, pairs=pairs))

    @cached_property
    def _rows(self) -> tuple[tuple[RowArray, ...] | None, bool]:
        """The arrays of a row, None for a single one; and whether its text is a pair.

        Data is opened only if needed to tell.

        Raises:
            EdistillError: the data cannot be opened.
        """
        columns = self.settings.data.columns
        pairs = columns is not None and isinstance(columns.text, tuple)
        name, entry = next(iter(self.settings.splits().items()), ("", None))
        if entry is None or not may_be_several(entry, columns):
            return None, pairs
        return arrays_of(self.source(name)), pairs

    @property
    def has_teachers(self) -> bool:
        """Whether members come from a hub or their folder exists; a run can also be evaluated from its cache alone."""
        return bool(self.settings.teachers.hub) or Path(self.settings.teachers.path).exists()


def sources_of(plans: Mapping[str, SplitPlan]) -> dict[str, Source]:
    """The sources of the splits, without their views."""
    return {name: plan.source for name, plan in plans.items()}
