"""A member before it is opened: its facts, and what opens it."""

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
    """Where a member's weights stand.

    Attributes:
        file: the file's name.
        key: where they stand in it, "ema.shadow"; empty where they are the whole file.
        average: whether they are known to be an average of several steps.
        unused: where others stand in it that could have been meant.
        fingerprint: their digest without the prefix that all names share, empty where there is none.
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
    """One member before it costs memory. A kind whose members are no modules of torch says how they open.

    Attributes:
        member: its facts, weights hashed.
        build: makes the module on the CPU in eval mode with the weights loaded, x to raw outputs;
            raises EdistillError when weights and module do not fit.
        origin: where the weights came from; None for what comes from no file.
        bare: whether it is weights alone, whose module `teachers.model` builds.
        opens: opens what is no module of torch; None for a module.
        what: such a member is, with its article: "an ONNX graph".
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
        """A member that is no module of torch: what needs one refuses it."""
        return cls(member, partial(_refuse_module, member.name, what), origin, opens=opens, what=what)

    def open(self, task: type[Task], positions: int | None = None) -> Answering:
        """The member as it is asked.

        Args:
            positions: how many of a row it is asked about, its last; None for a row as a whole.

        Raises:
            EdistillError: weights and module do not fit, or only a module of torch is asked about positions.
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
        """The member by another name, where it is a module of torch."""
        return replace(self, member=replace(self.member, name=name))

    def about(self) -> dict[str, Any]:
        """Its facts, and where its weights stand."""
        facts: dict[str, Any] = brief(self.member.to_json())
        return facts | ({} if self.origin is None else {"weights": self.origin.to_json()})


def _refuse_module(name: str, what: str) -> nn.Module:
    raise EdistillError(
        f"Member {name} is {what}, and what starts from a member takes the weights of a module of torch. Name others "
        "in student.init, or leave it and student.share out: a student learns from any member."
    )


@dataclass(frozen=True)
class Context:
    """What a kind may need to know besides the path.

    Attributes:
        settings: the `[teachers]` section; of a context `of` a member, as it holds for that one.
        names: what the data calls its classes, labels or targets, in their order; None where it has no names.
        trust: load pickled checkpoints that name arbitrary globals (`--trust-checkpoints`).
        task: what the student is for; see `Settings`.
        progress: is told what was chosen among several weights, and what was done so that they fit.
        trusted: of runs: whose code may make their bodies.
        said: the member's own table of `teachers.members`, and its pattern; None where it has none.
        arrays: of which a row of the data consists; None where it is one, or nobody asks.
        pairs: whether a row's text is two.
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
        """What a kind may need to know of this member."""
        pattern = self.settings.pattern_of(name)
        said = None if pattern is None else (pattern, self.settings.members[pattern])
        return replace(self, settings=self.settings.of_pattern(pattern), said=said)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names, where outputs go by them."""
        return self.names if open_task(self.task).named else None

    def order(self, name: str, names: Sequence[str] | None = None, source: str = "") -> Order | None:
        """Which of the data's classes each output of a member means; None where they are in the data's order.

        Args:
            names: of its outputs, as its own files have them; None where they say nothing.
            source: the file that does, for messages.

        Raises:
            EdistillError: its names are not the data's; or its table in the settings has the same in another order.
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
        """Mean and standard deviation: two numbers, or a tuple each, where one of them is one."""
        found = self.settings.standardized
        if found is None:
            return None
        count = max(len(unit) if isinstance(unit, tuple) else 0 for unit in (found.mean, found.std))
        mean, std = (
            unit if isinstance(unit, tuple) or not count else (unit,) * count for unit in (found.mean, found.std)
        )
        return mean, std


class TeacherKind(Protocol):
    """A module of this package with these two functions is a kind; the file's name is its key."""

    def claims(self, path: Path) -> bool:
        """Whether `path` (a file or a folder) is one member of this kind; cheap, reads no weights."""
        ...

    def load(self, path: Path, context: Context) -> Teacher: ...
