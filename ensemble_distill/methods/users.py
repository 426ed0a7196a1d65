"""A user's own method: every value it returns is checked before use, and its errors are reported as its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.methods.method import Batch, Method, Stage, Step
from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.runtime.factories import load_factory
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.own import told_as_own
from ensemble_distill.students.student import Form, Student
from ensemble_distill.tasks import Task

NEEDS = {"teacher", "labels"}
Found = TypeVar("Found")


class UsersMethod(Method):
    """A user's method, given as `file.py:Class` or `package.module:Class`.

    Raises:
        EdistillError: the class is not a `Method`, or an attribute is not what `Method` documents. Its methods raise it
            when the user's own raise an error or return an unusable value.
    """

    def __init__(self, spec: str) -> None:
        own = load_factory(spec, "train.method")()
        if not isinstance(own, Method):
            raise EdistillError(
                f"train.method {spec} makes {type(own).__name__}, which is not a method. Derive the class from "
                "ensemble_distill.Method."
            )
        self.spec, self.own = spec, own
        file = Path(spec.rpartition(":")[0])
        self.source = sha256_file(file) if file.suffix == ".py" else ""
        tasks, needs = type(own).tasks, type(own).needs
        known = Method.tasks
        self._check(tasks and known.issuperset(tasks), "tasks", own.tasks, f"some of {', '.join(sorted(known))}")
        self._check(NEEDS.issuperset(needs), "needs", own.needs, "a set of teacher and labels")
        self._check(isinstance(own.several, bool), "several", own.several, "True or False")
        self._check(own.form in get_args(Form), "form", own.form, f"one of {', '.join(get_args(Form))}")
        options: Any = own.Options
        self._check(
            isinstance(options, type) and issubclass(options, BaseModel), "Options", options, "a pydantic BaseModel"
        )
        vars(self).update(title=own.title, paper=own.paper, outputs=own.outputs, several=own.several)
        vars(self).update(needs=frozenset(needs), tasks=frozenset(tasks), form=own.form, Options=options)

    def family(self, of_members: Family) -> Family:
        found = self._asked("family", lambda: self.own.family(of_members))
        usable = all(callable(getattr(found, name, None)) for name in ("width", "predictive", "raw"))
        self._check(usable, "family", found, "a family of ensemble_distill.predictive")
        return found

    def heads(self, members: int) -> int:
        found = self._asked("heads", lambda: self.own.heads(members))
        self._check(isinstance(found, int) and not isinstance(found, bool) and found >= 1, "heads", found, "1 or more")
        return found

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        found = self._asked("settled", lambda: self.own.settled(options, task, from_members))
        self._check(isinstance(found, type(options)), "settled", found, f"{type(options).__name__}, as Options is")
        return found

    def timed(self, options: BaseModel, steps: int) -> BaseModel:
        found = self._asked("timed", lambda: self.own.timed(options, steps))
        self._check(isinstance(found, type(options)), "timed", found, f"{type(options).__name__}, as Options is")
        return found

    def needed(self, options: BaseModel) -> frozenset[str]:
        found: Any = self._asked("needed", lambda: frozenset(self.own.needed(options)))
        self._check(NEEDS.issuperset(found), "needed", found, "a set of teacher and labels")
        return frozenset(found)

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        found: Any = self._asked("idle", lambda: dict(self.own.idle(options)))
        texts = all(isinstance(text, str) for text in (*found.keys(), *found.values()))
        self._check(texts, "idle", found, "a mapping of options' names to why they do nothing")
        return dict(found)

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]:
        found: Any = self._asked("stages", lambda: list(self.own.stages(options, members)))
        return [self._stage(stage) for stage in found]

    def _stage(self, stage: Any) -> Stage:
        self._check(isinstance(stage, Stage), "stages", stage, "Stage(name, share, start, loss)")
        share: Any = stage.share
        usable = isinstance(share, float | int) and math.isfinite(share) and 0 < share <= 1
        self._check(usable, f"stage {stage.name}'s share", share, "a number above 0, at most 1")
        for what in ("start", "loss"):
            value = getattr(stage, what)
            self._check(callable(value), f"stage {stage.name}'s {what}", value, "a function")

        def start(student: Student) -> Student:
            found: Student = self._asked(f"stage {stage.name}'s start", lambda: stage.start(student))
            self._check(isinstance(found, Student), f"stage {stage.name}'s start", found, "a Student")
            return found

        def loss(batch: Batch, student: Predictive, step: Step) -> Tensor:
            found: Tensor = self._asked(f"stage {stage.name}'s loss", lambda: stage.loss(batch, student, step))
            return found

        def fit(student: Student, rows: Iterable[tuple[Tensor, Batch]]) -> None:
            assert stage.fit is not None
            solve = stage.fit
            self._asked(f"stage {stage.name}'s fit", lambda: solve(student, rows))

        def watch(batch: Batch, student: Predictive) -> Mapping[str, Tensor]:
            assert stage.watch is not None
            ask = stage.watch
            found: Mapping[str, Tensor] = self._asked(f"stage {stage.name}'s watch", lambda: ask(batch, student))
            usable = isinstance(found, Mapping) and all(
                isinstance(v, Tensor) and v.numel() == 1 for v in found.values()
            )
            self._check(usable, f"stage {stage.name}'s watch", found, "a mapping of names to tensors of one number")
            return found

        checked: Stage = replace(
            stage,
            start=start,
            loss=loss,
            fit=None if stage.fit is None else fit,
            watch=None if stage.watch is None else watch,
        )
        return checked

    def _asked(self, what: str, answer: Callable[[], Found]) -> Found:
        with told_as_own(f"train.method {self.spec}: {what}"):
            return answer()

    def _check(self, usable: object, what: str, found: object, wanted: str) -> None:
        if not usable:
            raise EdistillError(f"train.method {self.spec}: {what} is {found!r}. Make it {wanted}.")
