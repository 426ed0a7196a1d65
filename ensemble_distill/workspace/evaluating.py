"""From settings to the inputs of an evaluation: the splits, the cache and the members that a run learned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.unchanged import refuse_changed_members
from ensemble_distill.data.folds import refuse_other_folds
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.given import Given
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.names import places
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.held_out import AnswersHeldOut
from ensemble_distill.teachers.ready_made import MODEL as READY_MADE
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.tried import TriedFirst
from ensemble_distill.workspace.splits import with_classes
from ensemble_distill.workspace.workspace import Workspace

# facts about members that a run records, and the keys of [teachers] by which the settings may contradict them
FACTS = {"output": "output", "preprocessing": "preprocessing", "units": "standardized", "variance": "variance"}


class Splits(Mapping[str, Source]):
    """The configured splits by name, each opened on first access.

    Access raises EdistillError if a split is not configured or cannot be opened.

    Args:
        task: its class names are what labels index, in tasks with one class per row.
    """

    def __init__(self, workspace: Workspace, task: Task) -> None:
        self._workspace, self._classes = workspace, task.data_names if task.one_class else None
        self._opened: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._opened:
            self._opened[name] = with_classes(self._workspace.source(name), self._classes, name)
        return self._opened[name]

    def __contains__(self, name: object) -> bool:
        return name in self._workspace.split_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._workspace.split_names)

    def __len__(self) -> int:
        return len(self._workspace.split_names)


def open_for_evaluation(workspace: Workspace, run: Run, *, must_ask: bool = False) -> Given:
    """Open what a run, and others of its ensemble, are evaluated with.

    Args:
        must_ask: whether members will be asked about rows that no cache has.

    Raises:
        EdistillError: the settings have another task than the run; the members are not available and must be asked; the
            cache is damaged, or the device does not exist.
    """
    refuse_other_task(workspace, run)
    workspace = _beside_its_teachers(workspace, run)
    if must_ask and not workspace.has_teachers:
        raise EdistillError(
            f"--shifts asks the members about distorted rows, and there is no {workspace.settings.teachers.path}. Put "
            "the teachers back, or leave --shifts out."
        )
    if must_ask:
        refuse_not_askable(members_of(workspace, run))
    return Given(
        splits=Splits(workspace, run.architecture.task),
        cache=workspace.cache if workspace.has_cache else None,
        members=partial(_opened, workspace, run),
        at_hand=workspace.has_teachers,
        device=workspace.device,
        workers=workspace.workers,
        trusted=workspace.trusted,
        progress=workspace.progress,
    )


def refuse_not_askable(teachers: Sequence[Teacher]) -> None:
    """Raise EdistillError if a member is ready-made outputs, which cannot be asked about other rows."""
    for teacher in teachers:
        if teacher.member.model == READY_MADE:
            raise EdistillError(
                f"--shifts asks the members about distorted rows, and {teacher.member.name} has ready-made outputs of "
                "rows as they are. Leave --shifts out."
            )


def refuse_other_task(workspace: Workspace, run: Run) -> None:
    """Raise EdistillError if a run has another task than the settings."""
    there, here = run.architecture.task.key, workspace.settings.task
    if there != here:
        raise EdistillError(
            f"{run.folder} is for {there}, and the settings say task = {here!r}. Set task back, or name another run."
        )


def members_of(workspace: Workspace, run: Run) -> list[Teacher]:
    """A run's members in the run's order, from the teachers' folder.

    Raises:
        EdistillError: a member is missing, or the settings contradict what the run recorded about it.
    """
    found = {teacher.member.sha256: teacher for teacher in _teachers(workspace, run)}
    for member in run.provenance.members:
        if member.sha256 not in found:
            raise EdistillError(
                f"{run.folder} was trained from member {member.name} ({member.sha256[:12]}…), which is not "
                f"among the teachers in {workspace.settings.teachers.path}. Put it back."
            )
        for what, key in FACTS.items():
            if what == "preprocessing" and run.architecture.kind not in ("pixels", "several"):
                continue  # preprocessing has no effect on other rows
            there, here = getattr(member, what), getattr(found[member.sha256].member, what)
            if there != here and not (what == "preprocessing" and here is not None and here.is_what(there)):
                raise EdistillError(
                    f"{run.folder} was trained from member {member.name} with {what} {there}, but now it is "
                    f"{here}. Set teachers.{key} back."
                )
    return [replace(found[member.sha256], member=member) for member in run.provenance.members]


def _opened(workspace: Workspace, run: Run) -> Sequence[Answering]:
    task, positions = run.architecture.task, run.architecture.positions
    teachers = members_of(workspace, run)
    opened = [
        TriedFirst(teacher.open(type(task), positions), len(task.names) or None, workspace.progress.note)
        for teacher in teachers
    ]
    if workspace.has_cache:
        refuse_changed_members(workspace.cache, workspace.split, workspace.split_names, opened)
    folds, of_all = workspace.folds, workspace.all_folds
    if folds is None or of_all is None:
        return opened
    every = [teacher.member for teacher in _teachers(workspace, run)]
    names = [member.name for member in every]
    refuse_other_folds(of_all, names)
    at = {member.sha256: fold for member, fold in zip(every, places(names), strict=True)}
    return [
        AnswersHeldOut(asked, at[teacher.member.sha256], folds) for asked, teacher in zip(opened, teachers, strict=True)
    ]


def _teachers(workspace: Workspace, run: Run) -> list[Teacher]:
    """All teachers that the settings name, for the classes of a run. Nothing is reported: training did that already."""
    return replace(workspace, progress=Silent()).ensemble(run.architecture.task.data_names)


def _beside_its_teachers(workspace: Workspace, run: Run) -> Workspace:
    """The workspace, possibly with the cache and the teachers of the run's own settings.

    A run should be compared with the members it learned from. The run's own cache and teachers are used if these hold
    its members, and the configured ones do not.
    """
    if not (run.folder / ARGS).is_file() or _hold(workspace, run):
        return workspace
    if not workspace.trusted.covers(run.folder):  # its settings can name code, too, which builds members
        return workspace
    own = replace(workspace, settings=read_args(run.folder))
    if not _hold(own, run):
        return workspace
    workspace.progress.note(f"{run.folder} learned from {own.settings.teachers.path}, and is compared with that.")
    settings = workspace.settings
    output = settings.output.model_copy(update={"cache": own.settings.output.cache})
    return replace(
        workspace, settings=settings.model_copy(update={"teachers": own.settings.teachers, "output": output})
    )


def _hold(workspace: Workspace, run: Run) -> bool:
    """Whether the configured cache or teachers include all members of a run."""
    wanted = {member.sha256 for member in run.provenance.members}
    if workspace.has_cache:
        cached = Manifest.load(workspace.cache_folder).members
        if wanted <= {member.sha256 for member in cached}:
            return True
    try:
        teachers = _teachers(workspace, run)
    except EdistillError:
        return False
    return wanted <= {teacher.member.sha256 for teacher in teachers}
