"""What a method is: options, and stages whose losses are written against `Predictive`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ensemble_distill.predictive.protocol import Family, Predictive
from ensemble_distill.students.student import Form, Student
from ensemble_distill.tasks import Task, task_names


@dataclass(frozen=True)
class Labels:
    """What is known of B rows, some of which were mixed with another.

    Attributes:
        own, partner: (B,) classes (int64) or targets (float) of each row and of the one it was mixed with; (B, K) or
            (B, D) of several labels or targets a row.
        weight: (B,) of its own.
        known: (B,) whether the row has a label at all; where it has none the others mean nothing.
    """

    own: Tensor
    partner: Tensor
    weight: Tensor
    known: Tensor

    def targets(self) -> Tensor:
        """The target of each row of regression, (B,) or (B, D): of a mixed one what lies between the two; 0 where it is
        unknown."""
        of_row = (-1, *(1,) * (self.own.dim() - 1))  # the shape in which a number a row goes with a row's labels
        share = self.weight.view(of_row)
        return torch.where(self.known.view(of_row), share * self.own + (1 - share) * self.partner, 0.0)

    def nll(self, student: Predictive) -> Tensor:
        """Mean −ln q(y) of each of the student's members, (B, M), nats; 0 for rows without a label.

        A mixed row has both rows' classes or labels, each by its weight (Zhang et al. 2018, arXiv:1710.09412), but one
        target, which lies between the two.
        """
        return self._mixed(student.nll)

    def pooled_nll(self, student: Predictive) -> Tensor:
        """The same of the prediction made of the student's members, (B,)."""
        return self._mixed(lambda y: student.pooled_nll(y).unsqueeze(1))[:, 0]

    def _mixed(self, nll_of: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, M), from what gives that of labels."""
        if self.own.is_floating_point():
            nll = nll_of(self.targets())
        else:
            weight, known = self.weight.unsqueeze(1), self.known.view(-1, *(1,) * (self.own.dim() - 1))
            own, partner = (torch.where(known, y, 0) for y in (self.own, self.partner))
            nll = weight * nll_of(own) + (1 - weight) * nll_of(partner)
        return torch.where(self.known.unsqueeze(1), nll, 0.0)


def softened(options: BaseModel) -> str | None:
    """The clause of a temperature other than 1; see `Method.beyond_samples`."""
    temperature: float = getattr(options, "temperature", 1.0)
    return None if temperature == 1 else f"method.temperature is {temperature:g}, which softens all classes"


@dataclass(frozen=True)
class Batch:
    """What the members said of B rows, and the rows' labels; None where no row has one."""

    teacher: Predictive
    labels: Labels | None


@dataclass(frozen=True)
class Step:
    """Where in its stage a step is: 0 ≤ index < steps; and the seed of what a loss draws at random."""

    index: int
    steps: int
    seed: int = 0

    @property
    def progress(self) -> float:
        """Share of the stage that is done after this step, in (0, 1]."""
        return (self.index + 1) / self.steps


Loss = Callable[[Batch, Predictive, Step], Tensor]  # a scalar
Watch = Callable[[Batch, Predictive], Mapping[str, Tensor]]  # named scalars, that nothing is trained by
# sets weights of the student from many rows: the body's features (B, F) of each batch, and what was said of its rows
Fit = Callable[[Student, Iterable[tuple[Tensor, Batch]]], None]


@dataclass(frozen=True)
class Stage:
    """A part of training under one loss.

    Attributes:
        name: for logs.
        share: of all steps, in (0, 1]; the shares of a method sum to 1.
        start: makes this stage's student from the last one's.
        loss: what is minimized, from a batch, the student's prediction of it, and the step. Where several processes
            have a part of the batch each, it is over that of all by `runtime.ranks`; one that asks nothing there is
            taken for a mean over the rows that it is given.
        fit: what is solved for before the first step, from the cached rows in their views; None for nothing.
        watch: what `summary.csv` tells of the training rows beside the loss, means over the steps of an epoch in which
            it is not NaN; None for nothing. Nothing in it should wait for the device.
        optional: whether it is left out, its share going to the next stage, where steps do not suffice for all.
    """

    name: str
    share: float
    start: Callable[[Student], Student]
    loss: Loss
    fit: Fit | None = None
    watch: Watch | None = None
    optional: bool = False


class Options(BaseModel):
    """The `[method]` table of a method; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda n: n.replace("_", "-"), populate_by_name=True
    )


class Method(ABC):
    """A paper's way to train a student; one file of this package, found by its name.

    Attributes:
        title: one line for `edistill methods`.
        paper: who describes it.
        outputs: what its student emits, in words.
        needs: of "teacher" (the members' outputs) and "labels"; without "teacher" only labeled splits are trained on.
            `needed` may add to it.
        tasks: the keys of those that it can be used for; all, if not overridden.
        several: whether it learns how members differ, so that one alone has nothing to teach it.
        form: how its student holds one prediction per member: "heads" or "rank-one".
        source: sha256 of the file of a user's own method, since another loss is another method; else "".
        Options: the `[method]` table.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    outputs: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})
    tasks: ClassVar[frozenset[str]] = frozenset(task_names())
    several: ClassVar[bool] = False
    form: ClassVar[Form] = "heads"
    source: str = ""
    Options: ClassVar[type[BaseModel]] = Options

    def family(self, of_members: Family) -> Family:
        """What its student's heads emit, given what the members' cached outputs are: the same, if not overridden."""
        return of_members

    def needed(self, options: BaseModel) -> frozenset[str]:
        """What it needs with these options: `needs`, if not overridden."""
        return self.needs

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        """The options with defaults that depend on the task or on a start from members; what was set stays."""
        return options

    def timed(self, options: BaseModel, steps: int) -> BaseModel:
        """The options with defaults that depend on how many steps there are; what was set stays."""
        return options

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        """What it asks of a teacher with these options that records of a few drawn classes do not have: a clause that
        names its key. None where `kl`, `pooled` and `member_mean` at temperature 1 are all.

        Args:
            pooled_top: whether the largest probability of the pooled prediction is known all the same.
        """
        return "it learns from the members' whole distributions"

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        """Which options do nothing beside the others, by their names in the file, and why: a clause."""
        return {}

    @abstractmethod
    def heads(self, members: int) -> int:
        """How many predictions the finished student makes of a row."""

    @abstractmethod
    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]: ...
