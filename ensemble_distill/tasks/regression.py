"""Regression: an answer is a number, told by a normal distribution in the target's unit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks import labels as checks
from ensemble_distill.tasks.task import UNCERTAINTIES, Apart, Array, Figures, Labeled, Task, Values, means

if TYPE_CHECKING:
    from torch import Tensor

    from ensemble_distill.predictive.gaussian import Gaussian
    from ensemble_distill.predictive.protocol import Family

COVERED = 1.959963984540054  # standard deviations about the mean that hold 95 % of a normal distribution
APART = 1e-4  # between two runtimes: of means in standard deviations, of variances as a share
FAINT = 1e-3  # nats: by so much log-variances may always differ
FARTHEST = 1e4  # standard deviations that a target may lie from 0; there single precision resolves a thousandth of one


@dataclass(frozen=True)
class Regression(Task):
    """One target a row."""

    key: ClassVar[str] = "regression"
    outputs: ClassVar[tuple[str, ...]] = ("mean", "mean-variance", "mean-logvar")
    own_output: ClassVar[str] = "mean-logvar"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    format: ClassVar[str] = "moments"
    standardizes: ClassVar[bool] = True
    softens: ClassVar[bool] = False
    shares_output: ClassVar[bool] = False
    figures_shown: ClassVar[tuple[str, ...]] = ("rmse", "nll", "coverage95", *UNCERTAINTIES)
    shifted_shown: ClassVar[tuple[str, ...]] = ("rmse", "nll", *UNCERTAINTIES)
    uncertainty_unit: ClassVar[str] = "variances, in the target's unit squared"
    predicted: ClassVar[tuple[str, ...]] = ("mean", "lower95", "upper95")
    exact: ClassVar[tuple[str, ...]] = predicted

    # --- records ------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def width(self) -> int:
        """A mean and a log-variance."""
        return 2

    @property
    def told(self) -> str:
        return "one number a row"

    def to_json(self) -> dict[str, Any]:
        return {"task": self.key, "classes": []}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        if record["classes"]:
            raise ValueError(f"the task is {cls.key}, and there are {len(record['classes'])} classes")
        return cls()

    @classmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        return cls()

    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        """Any number can be a target."""

    # --- labels and members -------------------------------------------------------------------------------------

    @classmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """float32 (rows,)."""
        return checks.as_targets(y, rows, named, first_row)

    @classmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """(B, 1) of a mean, or (B, 2) with its variance or log-variance."""
        from ensemble_distill.tasks.checks import moments

        return moments.joined(raw, rows, member)

    @classmethod
    def is_joined(cls, raw: Any, rows: int, member: Member) -> bool:
        from ensemble_distill.tasks.checks import moments

        return moments.is_joined(raw, rows, member)

    @classmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Means and log-variances (B, 2) in the target's unit."""
        from ensemble_distill.tasks.checks import moments

        return moments.checked(raw.double().cpu().numpy(), member, split, rows)

    @classmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        """Those with as many numbers a row as `teachers.output` says."""
        width = 1 if member.output == "mean" else 2
        return [part for part in parts if part.tensor.numel() == rows * width]

    @classmethod
    def compared(cls, answers: Array) -> Array:
        return answers

    @classmethod
    def magnitude(cls, answers: Array) -> float:
        """Of the means: log-variances are of about the same size whatever the unit."""
        return float(np.abs(answers[:, 0]).max())

    @classmethod
    def apart(cls, first: Array, rounding: float) -> Apart:
        spread = float(np.ptp(first[:, 0]) + np.exp(0.5 * first[:, 1].max()))
        return Apart(np.array([spread, 1.0]), np.array([rounding, FAINT]))

    @classmethod
    def number_told(cls, output: int, value: float) -> str:
        return f"{('a mean', 'a log-variance')[output]} of {value:.4g}"

    @classmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        apart = (now - then) / np.stack([np.exp(0.5 * then[:, 1]), np.ones(len(then))], axis=1)
        return float(np.abs(apart).max()), "its mean, in its own standard deviations, or its log-variance"

    @classmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> None:
        from ensemble_distill.tasks.checks import moments

        moments.check_units(member.name, gist[:, 0], labels, member.units)
        if not seen:  # there views may mix rows, and members know the targets by heart
            moments.check_spread(member, gist, labels)

    # --- distributions and figures ------------------------------------------------------------------------------

    def members_family(self) -> Family:
        from ensemble_distill.predictive.gaussian import GaussianFamily

        return GaussianFamily()

    def student_family(self, answers: Array | None, labels: Array | None) -> Family:
        """In units of what it is to learn, so that a fresh head is near it.

        Raises:
            EdistillError: that lies too far from 0 for single precision.
        """
        from ensemble_distill.predictive.gaussian import GaussianFamily

        if answers is not None:
            learned = answers[..., 0].mean(1)
            # not the spread of the means alone: members that know little hardly move theirs, and a fresh head's
            # variance would be thousands of times too small
            variance = float(learned.var() + np.exp(answers[..., 1].mean()))
        else:
            learned = np.asarray(labels, dtype=np.float64)
            variance = float(learned.var()) if np.ptp(learned) else 1.0
        center, scale = float(learned.mean()), math.sqrt(variance)
        if abs(center) > FARTHEST * scale:
            raise EdistillError(
                f"What the student is to learn lies at {center:.6g} and varies by {scale:.3g}: in single precision "
                "little is left of that. Take a constant off the targets, and off what the members return."
            )
        return GaussianFamily(center, scale)

    def quality(self, predictive: Gaussian, y: Tensor | None) -> Values:
        """The mean and the variance of each distribution; with targets y (B,) its mistakes too.

        `covered` is 1 where |y − μ| ≤ 1.96σ: of a mixture's moments, where the predictive is pooled.
        """
        variance = predictive.log_variance.exp()
        rows: Values = {"mean": predictive.mean.numpy(), "variance": variance.numpy()}
        if y is not None:
            error = y.unsqueeze(1) - predictive.mean
            rows["squared_error"] = error.square().numpy()
            rows["covered"] = (error.abs() <= COVERED * variance.sqrt()).double().numpy()
        return rows

    def uncertainty(self, predictive: Gaussian) -> Tensor:
        """Each distribution's own variance."""
        return predictive.log_variance.exp()

    def unit(self, ensemble: Mapping[str, NDArray[Any]]) -> float:
        """The ensemble's mean variance: targets of 1e6 and of 1e-6 are the same problem."""
        return float(ensemble["total_uncertainty"].mean())

    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`rmse` is in the target's unit, `coverage95` a share of the rows; the uncertainties are mean variances."""
        found: Figures = dict.fromkeys(self.figures_shown)
        found |= means(rows, {name: "covered" if name == "coverage95" else name for name in self.figures_shown})
        if "squared_error" in rows:
            found["rmse"] = float(np.sqrt(rows["squared_error"].mean(0)).mean())
        return found

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        """Outputs carry the target's unit, so their limits are relative to the prediction's own spread."""
        variance = outputs["variance"]
        if name not in ("mean", "head_means"):
            limit: Array = APART * (outputs[name] if name == "head_variances" else variance)
            return limit
        spread = np.sqrt(variance) if name == "mean" else np.sqrt(variance)[:, None]
        floor = 4 * np.finfo(np.float32).eps * np.abs(outputs[name])  # far from 0 a float32 is not finer than this
        limit = APART * spread + floor
        return limit

    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (rows,), "variance": (rows,)}

    def usable(self, outputs: Mapping[str, Array]) -> Array:
        usable: Array = np.isfinite(outputs["mean"]) & np.isfinite(outputs["variance"]) & (outputs["variance"] >= 0)
        return usable

    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """The mean and its 95 % interval."""
        for mean, variance in zip(outputs["mean"].tolist(), outputs["variance"].tolist(), strict=True):
            reach = COVERED * math.sqrt(variance)
            yield {"mean": mean, "lower95": mean - reach, "upper95": mean + reach}


TASK = Regression
