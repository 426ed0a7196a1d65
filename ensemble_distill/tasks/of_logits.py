"""What classification and multi-label share: K names, with a logit for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.facts import Member, names_in
from ensemble_distill.tasks.apart import Apart
from ensemble_distill.tasks.task import Array, Task

FAINT = 1e-3  # nats by which logits may always differ
LOGITS_APART, NATS_APART = 1e-4, 1e-5  # allowed between two runtimes: for logits, and for an answer's uncertainty
LAST_DIGITS = 4 * float(np.finfo(np.float32).eps)  # relative to the largest logit, for a student that is very sure
SUMMED = 16 * float(np.finfo(np.float32).eps)  # relative to the largest logit: the effect of another summation order
ANSWER = "logits"  # the name of a member's answer among several tensors


@dataclass(frozen=True)
class OfLogits(Task):
    """A task with named answers; if the data has no names, they are named 0 to K − 1."""

    classes: tuple[str, ...]

    outputs: ClassVar[tuple[str, ...]] = ("logits", "probabilities")
    own_output: ClassVar[str] = "logits"
    averages: ClassVar[tuple[str, ...]] = ("probabilities", "logits")
    format: ClassVar[str] = "dense"
    named: ClassVar[bool] = True
    solves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises ValueError for names that no training writes."""
        if not self.classes or len({name for name in self.classes if isinstance(name, str)}) < len(self.classes):
            raise ValueError(f"{self.called} are {list(self.classes)[:4]}, and not texts, each once")

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def data_names(self) -> tuple[str, ...] | None:
        return names_in(self.classes)

    @property
    def width(self) -> int:
        return len(self.classes)

    @property
    def told(self) -> str:
        return f"{len(self.classes)} {self.called}"

    def to_json(self) -> dict[str, Any]:
        return {"task": self.key, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        classes = record["classes"]
        if not isinstance(classes, list | tuple):
            raise ValueError(f"classes is {classes!r}, and not a list")
        return cls(tuple(classes))

    @classmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        """The matrix named "logits", else those with `count` columns, else all matrices."""
        matrices = [part for part in parts if part.tensor.dim() == 2]
        named = [part for part in matrices if len(part.steps) == 1 and part.steps[0][1] == ANSWER]
        return named or [part for part in matrices if part.tensor.shape[1] == count] or matrices

    @classmethod
    def magnitude(cls, answers: Array) -> float:
        return float(np.abs(answers).max())

    @classmethod
    def apart(cls, first: Array, rounding: float) -> Apart:
        return Apart(float(np.abs(first).max()), FAINT + rounding)

    def unit(self, ensemble: Mapping[str, NDArray[Any]]) -> float:
        """1: uncertainties are in nats."""
        return 1.0

    @classmethod
    def members_tolerance(cls, name: str, outputs: Mapping[str, Array], members: Sequence[Member]) -> Array | float:
        """A student's tolerance plus a share of the largest logit, since members' logits may have any size."""
        said = outputs.get("head_logits", outputs["logits"])
        return cls.tolerance(name, outputs) + SUMMED * float(np.abs(said).max())

    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        return {"logits": (rows, len(self.classes))}
