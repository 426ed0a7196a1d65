"""What a method is: options, and stages whose losses are written against `Predictive`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ensemble_distill.predictive.protocol import Predictive
from ensemble_distill.students.student import Student


@dataclass(frozen=True)
class Labels:
    """Classes (B,) of each row and of the row it was mixed with, and the weight (B,) of its own."""

    own: Tensor
    partner: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Batch:
    """What the members said of B rows, and the rows' labels where there are any."""

    teacher: Predictive
    labels: Labels | None


@dataclass(frozen=True)
class Step:
    """Where in its stage a step is: 0 ≤ index < steps."""

    index: int
    steps: int


Loss = Callable[[Batch, Predictive, Step], Tensor]  # a scalar


@dataclass(frozen=True)
class Stage:
    """A part of training under one loss.

    Attributes:
        name: for logs.
        share: of all steps, in (0, 1]; the shares of a method sum to 1.
        start: makes this stage's student from the last one's.
        loss: what is minimized, from a batch, the student's prediction of it, and the step.
    """

    name: str
    share: float
    start: Callable[[Student], Student]
    loss: Loss


class Options(BaseModel):
    """The `[method]` table of a method; unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda n: n.replace("_", "-"), populate_by_name=True
    )


class Method(Protocol):
    """A paper's way to train a student; one file of this package, found by its name."""

    title: ClassVar[str]  # one line for `edistill methods`
    paper: ClassVar[str]
    outputs: ClassVar[str]  # what its student emits
    needs: ClassVar[frozenset[str]]  # "teacher", "labels"
    Options: ClassVar[type[BaseModel]]

    def heads(self, members: int) -> int:
        """How many heads the finished student has."""
        ...

    def stages(self, options: BaseModel, members: int) -> Sequence[Stage]: ...
