"""What a method is: options, and stages with losses that are written against `Predictive`."""

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
    """The labels of B rows, each of which may be mixed with another row.

    Attributes:
        own, partner: (B,), classes (int64) or targets (float) of each row and of the row it was mixed with; (B, K) or
            (B, D) with several labels or targets per row.
        weight: (B,), the share of each row's own label, in a mixture with its partner's.
        known: (B,), whether each row has a label; if not, its other attributes are meaningless.
    """

    own: Tensor
    partner: Tensor
    weight: Tensor
    known: Tensor

    def targets(self) -> Tensor:
        """Each row's regression target, (B,) or (B, D): interpolated for a mixed row, 0 for a row without a label."""
        of_row = (-1, *(1,) * (self.own.dim() - 1))  # the shape that broadcasts one number per row over its labels
        share = self.weight.view(of_row)
        return torch.where(self.known.view(of_row), share * self.own + (1 - share) * self.partner, 0.0)

    def nll(self, student: Predictive) -> Tensor:
        """−ln q(y) of each of the student's members in nats, (B, M); 0 for rows without a label.

        For a mixed row, it is the weighted mean over both rows' classes or labels (Zhang et al. 2018,
        arXiv:1710.09412). Regression has a single target, interpolated between the two.
        """
        return self._mixed(student.nll)

    def pooled_nll(self, student: Predictive) -> Tensor:
        """−ln q(y) of the student's pooled prediction in nats, (B,); mixed and unlabeled rows count as in `nll`."""
        return self._mixed(lambda y: student.pooled_nll(y).unsqueeze(1))[:, 0]

    def _mixed(self, nll_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The −ln q(y) of possibly mixed labels, (B, M), from the function that gives it for plain labels."""
        if self.own.is_floating_point():
            nll = nll_of(self.targets())
        else:
            weight, known = self.weight.unsqueeze(1), self.known.view(-1, *(1,) * (self.own.dim() - 1))
            own, partner = (torch.where(known, y, 0) for y in (self.own, self.partner))
            nll = weight * nll_of(own) + (1 - weight) * nll_of(partner)
        return torch.where(self.known.unsqueeze(1), nll, 0.0)


def softened(options: BaseModel) -> str | None:
    """The clause for a temperature other than 1, else None; see `Method.beyond_samples`."""
    temperature: float = getattr(options, "temperature", 1.0)
    return None if temperature == 1 else f"method.temperature is {temperature:g}, which softens all classes"


@dataclass(frozen=True)
class Batch:
    """What the members predict for B rows, and the rows' labels: None if no row has one."""

    teacher: Predictive
    labels: Labels | None


@dataclass(frozen=True)
class Step:
    """A step's place in its stage, 0 ≤ index < steps, and the seed for whatever a loss draws at random."""

    index: int
    steps: int
    seed: int = 0

    @property
    def progress(self) -> float:
        """The share of the stage that is done after this step, in (0, 1]."""
        return (self.index + 1) / self.steps


Loss = Callable[[Batch, Predictive, Step], Tensor]  # a scalar
Watch = Callable[[Batch, Predictive], Mapping[str, Tensor]]  # named scalars, for display only
# sets weights of the student from many rows: for each batch, the body's features (B, F) and the batch
Fit = Callable[[Student, Iterable[tuple[Tensor, Batch]]], None]


@dataclass(frozen=True)
class Stage:
    """A part of training under one loss.

    Attributes:
        name: for logs.
        share: of all steps, in (0, 1]; the shares of a method sum to 1.
        start: makes this stage's student from the previous stage's.
        loss: what is minimized: a scalar from a batch, the student's prediction for it, and the step. If several
            processes each have a part of the batch, the loss reduces over all parts by `runtime.ranks`; a loss that
            does not use it is taken for a mean over the rows it is given.
        fit: solves for weights before the first step, from the cached rows in their views; None for no solution.
        watch: further figures of the training rows, written to `summary.csv` beside the loss as means over the steps
            of an epoch in which they are not NaN; None for no figures. It should not wait for the device.
        optional: whether the stage is left out, and its share goes to the next stage, if there are fewer steps than
            stages.
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
    """A paper's way to train a student: one file of this package, found by its name.

    Attributes:
        title: one line for `edistill methods`.
        paper: the paper that describes it.
        outputs: what its student emits, in words.
        needs: what it learns from: "teacher" (the members' outputs), "labels", or both. Without "teacher", it trains
            on labeled splits only. `needed` may add to it.
        tasks: the keys of the tasks it supports; all by default.
        several: whether it learns how members differ, so that a single member has nothing to teach.
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
        """The family of the student's heads, given that of the members' cached outputs; the same by default."""
        return of_members

    def needed(self, options: BaseModel) -> frozenset[str]:
        """What the method needs with these options; `needs` by default."""
        return self.needs

    def settled(self, options: BaseModel, task: type[Task], from_members: bool) -> BaseModel:
        """The options with defaults filled in that depend on the task or on a start from members."""
        return options

    def timed(self, options: BaseModel, steps: int) -> BaseModel:
        """The options with defaults filled in that depend on the number of steps."""
        return options

    def beyond_samples(self, options: BaseModel, pooled_top: bool) -> str | None:
        """A clause saying which option needs more of a teacher than records of a few drawn classes hold.

        None if the losses use only `kl`, `pooled` and `member_mean` at temperature 1.

        Args:
            options: the method's options.
            pooled_top: whether the records still tell the largest probability of the pooled prediction.
        """
        return "it learns from the members' whole distributions"

    def idle(self, options: BaseModel) -> Mapping[str, str]:
        """The options that the others make ineffective: their names in `edistill.toml`, and a clause saying why."""
        return {}

    @abstractmethod
    def heads(self, members: int) -> int:
        """The number of predictions that the finished student makes for a row."""

    @abstractmethod
    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]: ...
