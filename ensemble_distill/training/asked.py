"""The inputs of a training, as values that a command has already read and opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from ensemble_distill.cache.reader import Cache
from ensemble_distill.data.source import Source
from ensemble_distill.facts import AnyPreprocessing
from ensemble_distill.methods.method import Method
from ensemble_distill.settings import StudentSettings, TeacherSettings
from ensemble_distill.tasks import Task
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.rows import CachedSplit


@dataclass(frozen=True)
class Asked:
    """The settings of a run, resolved.

    Attributes:
        folder: the run folder.
        method, options: see `settled_method`.
        overwrite: whether to replace the run in `folder`.
    """

    folder: Path
    method: Method
    options: BaseModel
    student: StudentSettings
    train: SettledTraining
    teachers: TeacherSettings
    overwrite: bool

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs: "teacher", "labels" or both."""
        return self.method.needed(self.options)

    @property
    def freezes(self) -> bool:
        """Whether BatchNorm keeps its statistics; by default if the body starts from a member."""
        asked = self.train.freeze_bn
        return self.student.init is not None if asked is None else asked


@dataclass(frozen=True)
class Among:
    """What a student is built for and from, with or without a cache.

    Attributes:
        task: the kind of answer.
        names: the members it learns from.
        teachers: all members that can still be opened.
        source: the rows to train on.
        preprocessing: the student's; None if rows go to networks as they are.
    """

    task: Task
    names: tuple[str, ...]
    teachers: Sequence[Teacher]
    source: Source
    preprocessing: AnyPreprocessing | None


@dataclass(frozen=True)
class Learned:
    """The data a student learns from, opened and checked to belong together.

    Attributes:
        task: the kind of answer.
        cache: the cache of the members it learns from.
        sources: all splits available for training.
        splits: the splits it is trained on; some methods skip rows without labels.
        validation: the validation split; None if the cache has none.
        teachers: all members that can still be opened.
        preprocessing: the student's; None if rows go to networks as they are.
    """

    task: Task
    cache: Cache
    sources: Mapping[str, Source]
    splits: Mapping[str, CachedSplit]
    validation: CachedSplit | None
    teachers: Sequence[Teacher]
    preprocessing: AnyPreprocessing | None

    @property
    def among(self) -> Among:
        """What the student is built for and from."""
        names, source = tuple(self.cache.manifest.names), self.splits["train"].source
        return Among(self.task, names, self.teachers, source, self.preprocessing)
