"""What a training is asked for, as values that a command has read and opened."""

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
    """What the settings say of a run.

    Attributes:
        folder: the run's.
        method, options: see `settled_method`.
        overwrite: whether the run that stands there is to be replaced.
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
        """Of "teacher" and "labels"."""
        return self.method.needed(self.options)

    @property
    def freezes(self) -> bool:
        """Whether BatchNorm keeps its statistics: by default where a body starts from a member."""
        asked = self.train.freeze_bn
        return self.student.init is not None if asked is None else asked


@dataclass(frozen=True)
class Learned:
    """What a student learns from, opened and known to belong together.

    Attributes:
        task: what the answer of a row is.
        cache: of the members that it learns from.
        sources: the splits that are there to train on.
        splits: those of them that it is trained on; some methods pass over rows without labels.
        validation: None where there is none in the cache.
        teachers: all members, where they are still there.
        preprocessing: the student's; None for rows that networks are given as they are.
    """

    task: Task
    cache: Cache
    sources: Mapping[str, Source]
    splits: Mapping[str, CachedSplit]
    validation: CachedSplit | None
    teachers: Sequence[Teacher]
    preprocessing: AnyPreprocessing | None
