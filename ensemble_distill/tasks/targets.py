"""Regression targets: their names, their units and the range of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.task import Array, Labeled

FARTHEST = 1e4  # standard deviations that targets may lie from 0; float32 resolves a thousandth of one there
SMALLEST, LARGEST = 1e-17, 1e17  # a target's standard deviation: float32 holds its square and the inverse of that


@dataclass(frozen=True)
class Target:
    """One of several targets of a row.

    Attributes:
        name, unit: the target's name and unit; the unit may be empty.
        std: standard deviation over the labeled rows that the cache was made from: the unit of uncertainties over all
            targets.
    """

    name: str
    unit: str
    std: float

    def __post_init__(self) -> None:
        """Raises ValueError for fields that no cache holds."""
        texts = isinstance(self.name, str) and isinstance(self.unit, str)
        if not texts or not isinstance(self.std, float | int) or not 0 < self.std < math.inf:
            raise ValueError(f"{self} is not a target")

    @classmethod
    def called(cls, text: str, std: float) -> Self:
        """A target from a text such as "heat [kW]", or from a name alone."""
        match = re.fullmatch(r"(.*?)\s*\[(.*)\]", text.strip())
        return cls(match[1], match[2], std) if match and match[1] else cls(text.strip(), "", std)

    @property
    def told(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def is_called(self, text: str) -> bool:
        """Whether a text names this target; if one of the two leaves out the unit, the units match."""
        other = Target.called(text, self.std)
        return self.name == other.name and (self.unit == other.unit or not (self.unit and other.unit))


def each_target(member: Member, count: int) -> list[tuple[Member, tuple[float, float] | None]]:
    """For each target, the member with that target's units, and the units; with several, its name says which."""
    units = None if member.units is None else [np.broadcast_to(unit, count).tolist() for unit in member.units]
    each: list[tuple[float, float] | None] = [None] * count if units is None else list(zip(*units, strict=True))
    named = [member.name] if count == 1 else [f"{member.name}, target {at}" for at in range(count)]
    return [(replace(member, name=name, units=one), one) for name, one in zip(named, each, strict=True)]


def refuse_unit(what: str, std: float) -> None:
    """Raise EdistillError if a standard deviation cannot be squared in single precision."""
    if not SMALLEST <= std <= LARGEST:
        raise EdistillError(
            f"{what} varies by {std:.3g}, and beyond {SMALLEST:g} and {LARGEST:g} single precision fails. Give the "
            "targets, and what the members return, in another unit."
        )


def in_reach(answers: Array | None, labels: Array | None, weights: Array | None = None) -> tuple[float, float]:
    """Center and scale of what a student is to learn for one target.

    Args:
        answers: (N, M, 2), the members' means and log-variances; None to use labels.
        labels: (N,), used if there are no answers.
        weights: (M,), or (N, M) to weight each row differently; None for equal weights.

    Raises:
        EdistillError: the values lie too far from 0 for single precision, or vary too little or too much.
    """
    if answers is not None:
        learned, log_variance = _pooled(answers[..., 0], weights), _pooled(answers[..., 1], weights)
        # the spread of the means alone is not enough: members that know little hardly vary theirs, and a fresh head's
        # variance would be thousands of times too small
        variance = float(learned.var() + np.exp(log_variance.mean()))
    else:
        learned = np.asarray(labels, dtype=np.float64)
        variance = float(learned.var()) if np.ptp(learned) else 1.0
    center, scale = float(learned.mean()), math.sqrt(variance)
    refuse_unit("What the student is to learn", scale)
    if abs(center) > FARTHEST * scale:
        raise EdistillError(
            f"What the student is to learn lies at {center:.6g} and varies by {scale:.3g}: in single precision little "
            "is left of that. Take a constant off the targets, and off what the members return."
        )
    return center, scale


def _pooled(values: Array, weights: Array | None) -> Array:
    """The members' weighted mean of values (N, M), (N,)."""
    each = None if weights is None else np.broadcast_to(weights, values.shape)
    mean: Array = np.average(values, axis=1, weights=each)
    return mean


def columns(labels: Array) -> int:
    """The number of targets in labels (N,) or (N, D)."""
    return int(labels.shape[1]) if labels.ndim == 2 else 1


def targets_in(splits: Mapping[str, Labeled], count: int) -> tuple[Target, ...]:
    """The targets of the first split that has labels; empty if there is a single target.

    Args:
        splits: by name, the training split first.
        count: the number of targets that members predict, used if no split has labels.

    Raises:
        EdistillError: there is not one distinct name per target, or a target varies too little or too much.
    """
    labels = next((source.labels for source in splits.values() if source.labels is not None), None)
    number = count if labels is None else columns(labels)
    if number == 1:
        return ()
    names = next((source.classes for source in splits.values() if source.classes is not None), None)
    names = names or tuple(f"target {at}" for at in range(number))
    if len(names) != number:
        raise EdistillError(
            f"The data has {number} targets a row, and {len(names)} names ({', '.join(names[:4])}, …). Name every "
            "target, in the order of the columns of y."
        )
    std = np.ones(number) if labels is None else labels.std(axis=0, dtype=np.float64)
    std = np.where(std > 0, std, 1.0)
    for name, one in zip(names, std.tolist(), strict=True):
        refuse_unit(f"The target {name}", one)
    targets = tuple(Target.called(name, float(s)) for name, s in zip(names, std, strict=True))
    if len({target.name for target in targets}) < number:
        raise EdistillError(
            f"The data names its targets {', '.join(names[:4])}, and without their units two have one name. Give "
            "every target its own."
        )
    return targets
