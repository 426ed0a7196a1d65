"""A member before it is opened: its facts, and how to open it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, RowArray, numbered
from ensemble_distill.runs.trust import NOTHING, Trust
from ensemble_distill.runtime.contents import brief
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import MemberSettings, TeacherSettings
from ensemble_distill.settings.teachers import of_members
from ensemble_distill.students.positions import Positions
from ensemble_distill.tasks import Task, open_task
from ensemble_distill.tasks.checks.class_order import Order, order_by_names
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.network import Network


@dataclass(frozen=True)
class Origin:
    """Where a member's weights come from.

    Attributes:
        file: the file's name.
        key: their path in the file, such as "ema.shadow"; empty if they are the whole file.
        average: whether they are known to be an average of several steps.
        unused: paths of other weights in the file that could have been meant.
        fingerprint: their digest without the prefix that all names share; empty without such a prefix.
    """

    file: str
    key: str = ""
    average: bool = False
    unused: tuple[str, ...] = ()
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "key": self.key or None,
            "average": self.average,
            "unused": list(self.unused),
        }


@dataclass(frozen=True)
class Teacher:
    """A member before it takes memory.

    Attributes:
        member: its facts, with the weights hashed.
        build: makes the module on the CPU, in eval mode and with its weights; it maps x to raw outputs. Raises
            EdistillError if weights and module do not fit.
        origin: where the weights come from; None for a member without a file.
        bare: whether it is weights alone, whose module `teachers.model` builds.
        opens: opens a member that is not a torch module; None for a module.
        what: the kind of member with an article, such as "an ONNX graph", for messages.
    """

    member: Member
    build: Callable[[], nn.Module]
    origin: Origin | None = None
    bare: bool = False
    opens: Callable[[type[Task]], Answering] | None = None
    what: str = "a module of torch"

    @classmethod
    def asked_only(
        cls, member: Member, what: str, opens: Callable[[type[Task]], Answering], origin: Origin | None
    ) -> Teacher:
        """A member that is not a torch module; building a module of it raises EdistillError."""
        return cls(member, partial(_refuse_module, member.name, what), origin, opens=opens, what=what)

    def open(self, task: type[Task], positions: int | None = None) -> Answering:
        """Open the member.

        Args:
            task: the task whose answers it gives.
            positions: how many of a row's last positions it answers; None for rows as a whole.

        Raises:
            EdistillError: weights and module do not fit, or positions are asked of a member that is not a torch
                module.
        """
        if positions is None:
            return Network(task, self.member, self.build()) if self.opens is None else self.opens(task)
        if self.opens is not None:
            raise EdistillError(
                f"Member {self.member.name} is {self.what}, and the task is {task.key}, whose members are modules of "
                "torch: they are asked about every position of a row. Give its network as a checkpoint (teachers.model "
                "builds it), or move the member out of teachers.path."
            )
        return Network(task, self.member, Positions(self.build(), positions).eval())

    def named(self, name: str) -> Teacher:
        """The member under another name, for torch modules only."""
        return replace(self, member=replace(self.member, name=name))

    def about(self) -> dict[str, Any]:
        """Its facts and the origin of its weights, as JSON."""
        facts: dict[str, Any] = brief(self.member.to_json())
        return facts | ({} if self.origin is None else {"weights": self.origin.to_json()})


def _refuse_module(name: str, what: str) -> nn.Module:
    raise EdistillError(
        f"Member {name} is {what}, and what starts from a member takes the weights of a module of torch. Name others "
        "in student.init, or leave it and student.share out: a student learns from any member."
    )


@dataclass(frozen=True)
class Context:
    """What a kind needs to know besides the path.

    Attributes:
        settings: the `[teachers]` section, or after `of` the settings that apply to the member.
        names: the data's names of its classes, labels or targets, in order; None if it has none.
        trust: load pickled checkpoints that name arbitrary globals (`--trust-checkpoints`).
        task: key of the student's task; see `Settings`.
        progress: receives notes on the choice among several sets of weights, and on adjustments to make them fit.
        trusted: for runs, whose code may build their bodies.
        said: the pattern and the table of `teachers.members` that apply to the member; None without.
        arrays: the arrays of a row of the data; None if a row is one array, or it does not matter.
        pairs: whether a row's text is a pair of texts.
    """

    settings: TeacherSettings
    names: tuple[str, ...] | None = None
    trust: bool = False
    task: str = "classification"
    progress: Progress = field(default_factory=Silent)
    trusted: Trust = NOTHING
    said: tuple[str, MemberSettings] | None = None
    arrays: tuple[RowArray, ...] | None = None
    pairs: bool = False

    def of(self, name: str) -> Context:
        """The context for the member of this name, with the settings that apply to it."""
        pattern = self.settings.pattern_of(name)
        said = None if pattern is None else (pattern, self.settings.members[pattern])
        return replace(self, settings=self.settings.of_pattern(pattern), said=said)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The data's names if the task matches outputs to classes by name; else None."""
        return self.names if open_task(self.task).named else None

    def order(self, name: str, names: Sequence[str] | None = None, source: str = "") -> Order | None:
        """The class of the data that each output of a member means; None if they are in the data's order.

        Args:
            name: the member's.
            names: names of its outputs from its own files; None if these say nothing.
            source: the file with the names, for messages.

        Raises:
            EdistillError: its names are not the data's, or its table in the settings lists them in another order.
        """
        told = None if self.said is None else self.said[1].classes
        if told is None:
            return None if names is None or self.classes is None else order_by_names(name, names, self.classes, source)
        assert self.said is not None
        key = f"{of_members(self.said[0])}.classes"
        if names is not None and tuple(names) != told and sorted(names) == sorted(told):
            raise EdistillError(
                f"{key} is {list(told)}, and {source} of member {name} says {list(names)}. Leave {key} out, or fix "
                "the file."
            )
        if not open_task(self.task).named:
            return None
        return order_by_names(name, told, self.classes or numbered(len(told)), key)

    @property
    def stated(self) -> dict[str, Any]:
        """The fields of a `Member` that only the settings know: what its outputs mean."""
        return {
            "output": self.settings.output,
            "units": self._units,
            "variance": self.settings.variance,
        }

    @property
    def _units(self) -> tuple[Any, Any] | None:
        """Mean and standard deviation: two numbers, or two tuples if either is a tuple."""
        found = self.settings.standardized
        if found is None:
            return None
        count = max(len(unit) if isinstance(unit, tuple) else 0 for unit in (found.mean, found.std))
        mean, std = (
            unit if isinstance(unit, tuple) or not count else (unit,) * count for unit in (found.mean, found.std)
        )
        return mean, std


class TeacherKind(Protocol):
    """A kind of member: a module of this package with these two functions. Its key is the file's name."""

    def claims(self, path: Path) -> bool:
        """Whether `path`, a file or a folder, is one member of this kind; cheap, without reading weights."""
        ...

    def load(self, path: Path, context: Context) -> Teacher: ...
