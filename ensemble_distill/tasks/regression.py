"""Regression: an answer is one or more targets, each predicted by a normal distribution in the target's unit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runtime.records import parsed
from ensemble_distill.tasks.apart import Apart
from ensemble_distill.tasks.checks import labels as checks
from ensemble_distill.tasks.conformal import Conformal, Intervals
from ensemble_distill.tasks.figures import (
    UNCERTAINTIES,
    VARIANCES,
    Figures,
    Values,
    each_figures,
    each_member,
    each_rows,
    means,
    row_mean,
)
from ensemble_distill.tasks.targets import Target, columns, each_target, in_reach, targets_in
from ensemble_distill.tasks.task import Array, Labeled, Task

if TYPE_CHECKING:
    from torch import Tensor

    from ensemble_distill.predictive.gaussian import Gaussian
    from ensemble_distill.predictive.gaussian_vector import GaussianVector
    from ensemble_distill.predictive.protocol import Family

COVERED = 1.959963984540054  # standard deviations on either side of the mean that hold 95 % of a normal distribution
APART = 1e-4  # allowed between two runtimes: for means in standard deviations, for variances as a share
FAINT = 1e-3  # nats by which log-variances may always differ


@dataclass(frozen=True)
class Regression(Task):
    """One target per row if `targets` is empty, else the listed ones; their names are the data's class names."""

    targets: tuple[Target, ...] = ()

    key: ClassVar[str] = "regression"
    called: ClassVar[str] = "targets"
    outputs: ClassVar[tuple[str, ...]] = ("mean", "mean-variance", "mean-logvar")
    own_output: ClassVar[str] = "mean-logvar"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    format: ClassVar[str] = "moments"
    standardizes: ClassVar[bool] = True
    softens: ClassVar[bool] = False
    says_labels: ClassVar[bool] = True
    shares_output: ClassVar[bool] = False
    uncertainties_told: ClassVar[Mapping[str, str]] = VARIANCES
    figures_shown: ClassVar[tuple[str, ...]] = ("rmse", "nll", "coverage95", *UNCERTAINTIES)
    shifted_shown: ClassVar[tuple[str, ...]] = ("rmse", "nll", *UNCERTAINTIES)
    predicted: ClassVar[tuple[str, ...]] = ("mean", "lower95", "upper95")
    conformal: ClassVar[Conformal | None] = Intervals()
    exact: ClassVar[tuple[str, ...]] = (*predicted, *Intervals.columns)

    # --- records ------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    @property
    def count(self) -> int:
        """D, the number of targets."""
        return len(self.targets) or 1

    @property
    def width(self) -> int:
        """D means, followed by D log-variances."""
        return 2 * self.count

    @property
    def told(self) -> str:
        return f"{self.count} numbers a row ({', '.join(self.names)})" if self.targets else "one number a row"

    @property
    def uncertainty_unit(self) -> str:
        if self.targets:
            return "variances, in each target's standard deviation squared"
        return "variances, in the target's unit squared"

    def to_json(self) -> dict[str, Any]:
        several = {"targets": [asdict(target) for target in self.targets]} if self.targets else {}
        return {"task": self.key, "classes": [], **several}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        if record["classes"] not in ([], ()):
            raise ValueError(f"the task is {cls.key}, and classes is {record['classes']!r}")
        listed = record.get("targets", ())
        if not isinstance(listed, list | tuple):
            raise ValueError(f"targets is {listed!r}, and not a list")
        targets = tuple(parsed(Target, target) for target in listed)
        if len(targets) == 1 or len({target.name for target in targets}) < len(targets):
            raise ValueError(f"targets are {[target.name for target in targets]}, and not several, each once")
        return cls(targets)

    @classmethod
    def found(cls, splits: Mapping[str, Labeled], widths: Mapping[str, int], known: Self | None) -> Self:
        inside = {name: source for name, source in splits.items() if not name.startswith("ood/")}
        task = known or cls(targets_in(inside, next(iter(widths.values())) // 2))
        for member, width in widths.items():
            if width != task.width:
                count = width // 2
                raise EdistillError(
                    f"Member {member} says {'one number' if count == 1 else f'{count} numbers'} a row, and the "
                    f"{'cache' if known else 'data'} has {task.told}. Give the data the members were trained on, or "
                    "remove the members of another task from teachers.path."
                )
        for name, source in inside.items():
            task.refuse_other_labels(source, f"data.{name}", "the ensemble")
        if (learned := splits.get("train")) is not None and learned.labels is not None:
            checks.refuse_coarse(learned.labels, "data.train")
        return task

    def refuse_other_labels(self, source: Labeled, named: str, owner: str) -> None:
        labels = source.labels
        found = self.count if labels is None else self.counted(labels)
        if found != self.count:
            raise EdistillError(
                f"{named} has {found} targets a row, and {owner} has {self.told}. Give the data the members were "
                "trained on."
            )
        self._refuse_other_names(source.classes, named, owner)

    def order_in(self, owner: str, names: Sequence[str] | None, source: str) -> None:
        self._refuse_other_names(names, "The data", owner)

    def _refuse_other_names(self, names: Sequence[str] | None, named: str, owner: str) -> None:
        if names is None or not self.targets:
            return
        if len(names) != self.count or not all(t.is_called(n) for t, n in zip(self.targets, names, strict=True)):
            told = ", ".join(target.told for target in self.targets[:4])
            raise EdistillError(
                f"{named} names the targets {', '.join(names[:4])}, and {owner} has {told}. Give the same columns in "
                "the same order and units."
            )

    # --- labels and members -------------------------------------------------------------------------------------

    @classmethod
    def as_labels(
        cls, y: Array, rows: int, named: str, classes: Sequence[str] | None = None, first_row: int = 0
    ) -> Array:
        """Targets as float32, (rows,), or (rows, D) if there are several."""
        return checks.as_targets(y, rows, named, first_row)

    @classmethod
    def counted(cls, labels: Array) -> int:
        return columns(labels)

    @classmethod
    def joined(cls, raw: Any, rows: int, member: Member) -> Tensor:
        """Means (B, D), or (B, 2D) with the variances or log-variances after them."""
        from ensemble_distill.tasks.checks import moments

        return moments.joined(raw, rows, member)

    @classmethod
    def is_joined(cls, raw: Any, rows: int, member: Member) -> bool:
        from ensemble_distill.tasks.checks import moments

        return moments.is_joined(raw, rows, member)

    @classmethod
    def answers(cls, raw: Tensor, member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
        """Means and log-variances (B, 2D) in the targets' units."""
        from ensemble_distill.tasks.checks import moments

        return moments.checked(raw.double().cpu().numpy(), member, split, rows)

    @classmethod
    def as_answers(cls, raw: Tensor, member: Member) -> Tensor:
        from ensemble_distill.tasks.checks import moments

        return moments.as_answers(raw, member)

    @classmethod
    def candidates(cls, parts: Sequence[Any], member: Member, rows: int, count: int | None) -> list[Any]:
        """The parts with as many numbers per row as `teachers.output` implies for the targets."""
        width = (count or 1) * (1 if member.output == "mean" else 2)
        return [part for part in parts if part.tensor.numel() == rows * width]

    @classmethod
    def compared(cls, answers: Array) -> Array:
        return answers

    @classmethod
    def magnitude(cls, answers: Array) -> float:
        """The largest mean, since log-variances have about the same size in any unit."""
        return float(np.abs(answers[:, : answers.shape[1] // 2]).max())

    @classmethod
    def apart(cls, first: Array, rounding: float) -> Apart:
        means, log_variances = np.split(first, 2, axis=1)
        spread = np.ptp(means, axis=0) + np.exp(0.5 * log_variances.max(axis=0))
        ones = np.ones_like(spread)
        return Apart(np.concatenate([spread, ones]), np.concatenate([rounding * ones, FAINT * ones]))

    @classmethod
    def number_told(cls, output: int, value: float, width: int) -> str:
        second, target = divmod(output, width // 2)
        which = f" for target {target}" if width > 2 else ""
        return f"{('a mean', 'a log-variance')[second]} of {value:.4g}{which}"

    @classmethod
    def change(cls, now: Array, then: Array) -> tuple[float, str]:
        log_variances = np.split(then, 2, axis=1)[1]
        apart = (now - then) / np.concatenate([np.exp(0.5 * log_variances), np.ones_like(log_variances)], axis=1)
        return float(np.abs(apart).max()), "its mean, in its own standard deviations, or its log-variance"

    @classmethod
    def refuse_other_meaning(
        cls, member: Member, gist: Array, labels: Array, classes: Sequence[str] | None, seen: bool
    ) -> str | None:
        from ensemble_distill.tasks.checks import moments

        count = gist.shape[1] // 2
        truth = labels.reshape(len(labels), -1).T
        for target, ((of, units), y) in enumerate(zip(each_target(member, count), truth, strict=True)):
            pair = gist[:, [target, count + target]]
            moments.check_units(of.name, pair[:, 0], y, units)
            if not seen:  # on training rows, views may mix rows, and members have memorized the targets
                moments.check_spread(of, pair, y)
        return None

    # --- distributions and figures ------------------------------------------------------------------------------

    def members_family(self) -> Family:
        if self.targets:
            from ensemble_distill.predictive.gaussian_vector import GaussianVectorFamily

            return GaussianVectorFamily(self._std)
        from ensemble_distill.predictive.gaussian import GaussianFamily

        return GaussianFamily()

    @property
    def _std(self) -> tuple[float, ...]:
        return tuple(target.std for target in self.targets)

    def student_family(self, answers: Array | None, labels: Array | None, weights: Array | None = None) -> Family:
        """A family in units of what the student is to learn, so that a fresh head starts near it.

        Raises:
            EdistillError: the values lie too far from 0 for single precision, or vary too little or too much.
        """
        if self.targets:
            from ensemble_distill.predictive.gaussian_vector import GaussianVectorFamily

            count = self.count
            reach = [
                in_reach(
                    None if answers is None else answers[..., [target, count + target]],
                    None if labels is None else labels[:, target],
                    weights,
                )
                for target in range(count)
            ]
            return GaussianVectorFamily(self._std, *zip(*reach, strict=True))
        from ensemble_distill.predictive.gaussian import GaussianFamily

        return GaussianFamily(*in_reach(answers, labels, weights))

    def quality(self, predictive: Gaussian | GaussianVector, y: Tensor | None) -> Values:
        """The means and variances of each distribution, (B, M) or (B, M, D); with targets y, its mistakes too.

        `covered` is 1 where |y − μ| ≤ 1.96 σ; μ and σ are the mixture's moments if the predictive is pooled.
        """
        variance = predictive.log_variance.exp()
        rows: Values = {"mean": predictive.mean.numpy(), "variance": variance.numpy()}
        if y is not None:
            error = y.unsqueeze(1) - predictive.mean
            rows["squared_error"] = error.square().numpy()
            rows["covered"] = (error.abs() <= COVERED * variance.sqrt()).double().numpy()
        return rows

    def uncertainty(self, predictive: Gaussian | GaussianVector) -> Tensor:
        """Each distribution's variance; with several targets, the mean of theirs in units of `Target.std` squared."""
        variance = predictive.log_variance.exp()
        return (variance / variance.new_tensor(self._std).square()).mean(-1) if self.targets else variance

    def each_uncertainty(self, predictive: Gaussian | GaussianVector, pooled: bool) -> Values:
        """Each target's uncertainties as variances, in its own unit squared."""
        if not self.targets:
            return {}
        if not pooled:
            own = predictive.log_variance.exp()
            return each_rows(own, own, None)
        each = cast("GaussianVector", predictive).each()
        return each_rows(each.total, each.data, each.model if predictive.has_model_uncertainty else None)

    def comparable(self, squares: NDArray[Any]) -> NDArray[Any]:
        """The values in units of each target's `Target.std` squared if there are several targets; else unchanged."""
        return squares / np.square(self._std) if self.targets else squares

    def unit(self, ensemble: Mapping[str, NDArray[Any]]) -> float:
        """The ensemble's mean total variance, so that targets of size 1e6 and 1e-6 are the same problem."""
        return float(ensemble["total_uncertainty"].mean())

    def figures(self, rows: Mapping[str, NDArray[Any]]) -> Figures:
        """`figures_shown`: `rmse` in the target's unit, `coverage95` as a share of rows, and mean variances.

        With several targets, each also has its own `rmse.NAME`, `coverage95.NAME` and uncertainties such as
        `model_uncertainty.NAME`, in its own unit; the overall `rmse` and uncertainties are in units of `Target.std`.
        """
        found: Figures = dict.fromkeys(self.figures_shown)
        found |= means(rows, {name: "covered" if name == "coverage95" else name for name in self.figures_shown})
        if "squared_error" in rows:
            errors = self.comparable(rows["squared_error"])
            found["rmse"] = _rmse(errors.reshape(len(errors), -1, self.count))
        for at, target in enumerate(self.targets):
            of = {name: rows[name][..., at] for name in ("squared_error", "covered") if name in rows}
            if "squared_error" in of:
                found[f"rmse.{target.name}"] = _rmse(of["squared_error"].reshape(len(of["squared_error"]), -1))
                found[f"coverage95.{target.name}"] = row_mean(of["covered"])
        return found | each_figures(rows, self.names)

    # --- serving ------------------------------------------------------------------------------------------------

    @classmethod
    def tolerance(cls, name: str, outputs: Mapping[str, Array]) -> Array | float:
        """The limit relative to the prediction's own spread, since outputs carry the target's unit."""
        if name not in ("mean", "head_means"):
            limit: Array = APART * outputs[name if name.endswith(("variance", "variances")) else "total_uncertainty"]
            return limit
        variance = outputs["variance"]
        spread = np.sqrt(variance) if name == "mean" else np.sqrt(variance)[:, None]
        floor = 4 * np.finfo(np.float32).eps * np.abs(outputs[name])  # float32 is no finer than this far from 0
        limit = APART * spread + floor
        return limit

    def served(self, rows: int) -> dict[str, tuple[int, ...]]:
        shape = (rows, self.count) if self.targets else (rows,)
        return {"mean": shape, "variance": shape}

    def usable(self, outputs: Mapping[str, Array]) -> Array:
        mean, variance = (outputs[name].reshape(len(outputs[name]), -1) for name in ("mean", "variance"))
        usable: Array = np.all(np.isfinite(mean) & np.isfinite(variance) & (variance >= 0), axis=1)
        return usable

    def heads_served(self, outputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
        means, variances = (outputs.get(name) for name in ("head_means", "head_variances"))
        if means is None or variances is None:
            return []
        return [{"mean": means[:, head], "variance": variances[:, head]} for head in range(means.shape[1])]

    def predictions(self, outputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """The mean and its 95 % interval; with several targets, each under its name."""
        names = [f" {target.name}" for target in self.targets] or [""]
        for row_means, row_variances in zip(outputs["mean"], outputs["variance"], strict=True):
            record: dict[str, Any] = {}
            pairs = zip(names, *(np.atleast_1d(x).tolist() for x in (row_means, row_variances)), strict=True)
            for name, mean, variance in pairs:
                reach = COVERED * math.sqrt(variance)
                record |= {f"mean{name}": mean, f"lower95{name}": mean - reach, f"upper95{name}": mean + reach}
            yield record


def _rmse(squares: NDArray[Any]) -> float:
    """The mean over members of each one's root mean squared error, from squared errors (N, M, …)."""
    return float(np.mean([np.sqrt(own.mean()) for (own,) in each_member(squares)]))


TASK = Regression
