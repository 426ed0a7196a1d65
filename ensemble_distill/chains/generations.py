"""`edistill train --generations K`: train → run → teacher → cache → train, generation after generation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.chains.forecast import Forecast
from ensemble_distill.chains.settings import generation_settings
from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.args import refuse_other_settings, write_args
from ensemble_distill.runs.chain import finished_generations, refuse_changed
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.folder import ARGS, CHAIN_FILES, CONFIG, WEIGHTS, generation_name
from ensemble_distill.runs.folder import FILES as RUN_FILES
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import clear_folder, refuse_outside
from ensemble_distill.runtime.job import opened
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.runtime.shared import see_as_first
from ensemble_distill.runtime.words import shell
from ensemble_distill.settings import Settings
from ensemble_distill.training.refusals import refuse_no_chain
from ensemble_distill.training.report import TrainReport
from ensemble_distill.workflows.cache_logits import cache_in
from ensemble_distill.workflows.train import train_in
from ensemble_distill.workspace import Workspace
from ensemble_distill.workspace.alike import refuse_differing_settings, see_cache
from ensemble_distill.workspace.folders import refuse_foreign, run_folder
from ensemble_distill.workspace.training import recorded, settled_training


@dataclass(frozen=True)
class ChainReport:
    """A finished chain, and what this call did for it."""

    folder: Path
    method: str
    generations: tuple[TrainReport, ...]
    fresh: bool  # False if the chain was up to date already
    seconds: float


def train_chain(
    settings: Settings, *, overwrite: bool = False, trust: bool = False, progress: Progress | None = None
) -> ChainReport:
    """Train `train.generations` students: the first from the cached members, each later one from the one before.

    An interrupted chain resumes at its generation and step. A finished chain is left as it is, and grows if more
    generations are asked for.

    Args:
        settings: the chain's settings.
        overwrite: replace an existing chain once the first generation of the new one has a checkpoint.
        trust: load pickled checkpoints that name arbitrary globals.
        progress: receives progress, notes and warnings.

    Raises:
        EdistillError: as `train` does; the method or the student's start do not suit a chain; or a generation is not
            the one that the next has learned from.
    """
    with opened(settings.train.peer_timeout):
        return _train_chain(settings, overwrite, trust, progress or Silent())


def _train_chain(settings: Settings, overwrite: bool, trust: bool, progress: Progress) -> ChainReport:
    started = time.monotonic()
    settings = _settled(Workspace(settings), overwrite)
    count, folder = settings.train.generations or 1, run_folder(settings)
    see_as_first([folder / ARGS, *(file for number in range(count) for file in _run_files(folder, number + 1))])
    _refuse_foreign(folder)
    complete = not overwrite and len(finished_generations(folder)) >= count
    ranks.wait()  # until all have read what is there
    # an up-to-date chain may be in a read-only folder
    with one_writer(folder) if ranks.is_first() and not complete else nullcontext():
        if not overwrite:
            refuse_other_settings(folder, settings, free=("train.generations",))
        there = 0 if overwrite else len(finished_generations(folder))
        if 0 < there < count:
            _refuse_other_rows(settings, Run.open(folder / generation_name(1)))
        forecast = Forecast(folder, count - there, progress)
        reports = []
        for generation in range(1, count + 1):
            shown = _Titled(progress, f"generation {generation} of {count}: ")
            one = _Generation(generation, generation <= there, overwrite and generation == 1, trust)
            reports.append(_train_generation(settings, folder, one, forecast, shown))
            forecast.done(reports[-1])
    fresh = any(report.fresh for report in reports)
    return ChainReport(folder, reports[0].method, tuple(reports), fresh, time.monotonic() - started)


def _settled(workspace: Workspace, overwrite: bool) -> Settings:
    """The settings as the chain records them; raises EdistillError if they do not suit a chain."""
    refuse_differing_settings(workspace, "train", overwrite)
    see_cache(workspace.cache_folder)
    _refuse_unfit(workspace)
    return recorded(workspace.settings, settled_training(workspace))


@dataclass(frozen=True)
class _Generation:
    """A generation to train.

    Attributes:
        number: its position in the chain, from 1.
        finished: whether it is trained already.
        overwrite: whether it replaces an existing one.
        trust: load pickled checkpoints that name arbitrary globals.
    """

    number: int
    finished: bool
    overwrite: bool
    trust: bool


def _train_generation(
    settings: Settings, folder: Path, one: _Generation, forecast: Forecast, progress: Progress
) -> TrainReport:
    """Train a generation; from the second on, first cache the answers of the one before."""
    first, own = one.number == 1, generation_settings(settings, folder, one.number)
    refuse_outside(folder, run_folder(own) / ARGS)
    if not first:
        see_as_first(_run_files(folder, one.number - 1))  # they may have been written just now
        refuse_outside(folder, Path(own.output.cache) / MANIFEST)
        _refuse_changed_predecessor(folder, one.number)
        if not one.finished:
            _cache(own, Path(settings.output.cache), one.trust, progress)
    with _remedies(own, its_own=not first):
        report = train_in(
            Workspace(own, progress, one.trust, Path(settings.output.runs), Path(settings.output.cache)),
            overwrite=one.overwrite,
            begin=partial(forecast.say, own),
            claim=partial(_claim, folder, settings, one.overwrite) if first else lambda: None,
        )
    if not one.finished and ranks.is_first():  # a chain that grew has a new number of generations
        write_args(folder, settings)
    return report


def _refuse_unfit(workspace: Workspace) -> None:
    (method, options), settings = workspace.method, workspace.settings
    refuse_no_chain(settings.train.method, method, options, settings.student, settings.train.generations or 1)


def _refuse_foreign(folder: Path) -> None:
    """Raise EdistillError if `folder` is a run or a cache, holds other things, or would be deleted with either."""
    if (folder / CONFIG).is_file() or (folder / MANIFEST).is_file():
        what = "a run without generations" if (folder / CONFIG).is_file() else "a cache"
        raise EdistillError(f"{folder} is {what}, and a chain needs a folder of its own. Choose another --name.")
    refuse_foreign(folder, ARGS, "a chain", "output.runs or --name")


def _refuse_changed_predecessor(folder: Path, generation: int) -> None:
    after = folder / generation_name(generation)
    if (after / WEIGHTS).is_file() and not (after / CONFIG).is_file():
        raise EdistillError(
            f"{after} has lost its {CONFIG}. Delete {after}, and run the command again to make it again."
        )
    if (after / CONFIG).is_file():
        refuse_changed(Run.open(folder / generation_name(generation - 1)), after, StudentConfig.load(after))


def _refuse_other_rows(settings: Settings, first: Run) -> None:
    """Raise EdistillError if the chain's first generation was trained on other data than there is now."""
    workspace = Workspace(settings)
    for name, digest in first.provenance.trained_on.items():
        found = workspace.source(name).digest
        if found != digest:
            raise EdistillError(
                f"{first.folder} was trained on {name} data {digest[:12]}…, but data.{name} is {found[:12]}…. Put the "
                "data back, or choose another --name."
            )


def _cache(settings: Settings, pictures: Path, trust: bool, progress: Progress) -> None:
    """Cache the answers of the generation before to the rows of all splits but OOD ones.

    The other splits are all needed, since any of them may name the classes.

    Args:
        settings: of the generation that learns from these answers.
        pictures: the ensemble's cache, whose decoded pictures all generations share.
        trust: load pickled checkpoints that name arbitrary globals.
        progress: receives progress, notes and warnings.

    Raises:
        EdistillError: the generation before is not the one whose answers the cache has, or data or views have changed.
    """
    cache, before = Path(settings.output.cache), Run.open(Path(settings.teachers.path))
    with _remedies(settings, its_own=True):
        if (cache / MANIFEST).is_file():
            members, now = Manifest.load(cache).members, before.digest
            (member,) = _only(members, cache, before.folder)
            if member.sha256 != now:
                raise EdistillError(
                    f"{cache} holds what {before.folder.name} said with sha256 {member.sha256[:12]}…, and that is now "
                    f"{now[:12]}…. Put the old one back (edistill calibrate {shell(before.folder)} --remove, where it "
                    f"was calibrated since), or delete {cache} to ask it again."
                )
        seen = [name for name in settings.splits() if not name.startswith("ood/")]
        cache_in(Workspace(settings, progress, trust, pictures=pictures), only=seen)


def _only(members: Sequence[Member], cache: Path, before: Path) -> Sequence[Member]:
    """The only member of a generation's cache.

    Raises:
        EdistillError: there are others, as in caches that versions before 0.3 made with `teachers.hub`.
    """
    if len(members) != 1:
        names = " and ".join(member.name for member in members)
        raise EdistillError(
            f"{cache} holds what {names} said, and a generation learns from {before.name} alone. Delete {cache}, and "
            "run the command again."
        )
    return members


@contextmanager
def _remedies(settings: Settings, its_own: bool) -> Iterator[None]:
    """Add the right remedy to errors of the chain's own caches: cache-logits would make the ensemble's cache."""
    try:
        yield
    except CacheError as error:
        if not its_own:
            raise
        cache = settings.output.cache
        raise EdistillError(f"{error} But this cache is the chain's own: delete {cache} and go on instead.") from error


def _run_files(folder: Path, generation: int) -> list[Path]:
    """The files that identify a generation and that the next one learns from."""
    return [folder / generation_name(generation) / name for name in (ARGS, CONFIG, WEIGHTS)]


def _claim(folder: Path, settings: Settings, overwrite: bool) -> None:
    """Make the folder the chain's own; called when the first generation does so with its folder."""
    if overwrite:  # all of the old chain goes before the new one's settings are written
        clear_folder(folder / generation_name(1), RUN_FILES, last=ARGS)
        later = [path.name for path in folder.glob(generation_name("*")) if path.name != generation_name(1)]
        clear_folder(folder, (*sorted(later, key=lambda name: (-len(name), name)), *CHAIN_FILES), last=ARGS)
    write_args(folder, settings)


class _Titled:
    """Progress whose tasks begin with the title of their generation."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.progress.start(self.title + task, total, unit, done)

    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None:
        self.progress.advance(count, facts)

    def finish(self) -> None:
        self.progress.finish()

    def note(self, text: str) -> None:
        self.progress.note(text)

    def warn(self, text: str) -> None:
        self.progress.warn(text)
