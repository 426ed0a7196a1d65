"""Checks of regressors' outputs, and their conversion to means and log-variances in the target's unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble_distill.errors import CacheError, EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.tasks.checks.logits import refuse_not_finite

LARGEST_MEAN = 1e18  # float32 holds its square
LARGEST_LOG_VARIANCE = 80.0  # of either sign: float32 holds the variance and its inverse
SMALLEST_ROWS = 20  # fewer rows do not distinguish a member in another unit from a bad one
FAR_OFF, NEAR = 30.0, 4.0  # factors of (y − μ)²/σ², which is about 1 for a member that knows its own error
MIDDLE = 0.4549364  # the median of a squared standard normal variable
EXPLAINED = 0.5  # the share of a target's variance that outputs must explain to count as predictions of it


def joined(raw: Any, rows: int, member: Member) -> Tensor:
    """The output as one tensor: means (B, D), or (B, 2D) with the variances or log-variances after them.

    Also accepts a pair of tensors, means (B,) of one target, and what `squeeze` leaves of a single row. Raises
    EdistillError for anything else.
    """
    parts = list(raw) if isinstance(raw, tuple | list) else [raw]
    width = 1 if member.output == "mean" else 2
    if is_joined(raw, rows, member):
        return torch.cat([part.detach().reshape(rows, -1) for part in parts], dim=1)
    got = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
    what = "(rows,) or (rows, targets)" if width == 1 else "(rows, 2 × targets), or a pair of (rows, targets)"
    raise EdistillError(
        f"Member {member.name} returns {got} for {rows} rows; one that returns {member.output} gives {what}. Set "
        "teachers.output to what it returns, or wrap it in a factory of your own (teachers.model)."
    )


def is_joined(raw: Any, rows: int, member: Member) -> bool:
    """Whether `joined` accepts an output."""
    parts = list(raw) if isinstance(raw, tuple | list) else [raw]
    if not all(isinstance(part, Tensor) and _by_row(part, rows) for part in parts):
        return False
    width = 1 if member.output == "mean" else 2
    numbers = [int(part.numel()) for part in parts]
    if len(numbers) > 1:  # a pair: means, and variances or log-variances
        return len(numbers) == width and numbers[0] == numbers[1] > 0
    return numbers[0] > 0 and numbers[0] % (rows * width) == 0


def _by_row(part: Tensor, rows: int) -> bool:
    squeezed = rows == 1 and part.dim() <= 1
    return squeezed or (part.dim() in (1, 2) and len(part) == rows)


def checked(values: NDArray[np.float64], member: Member, split: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Raw outputs (B, D or 2D) as means and log-variances (B, 2D) in the targets' units.

    Raises:
        EdistillError: an output is NaN or infinite, a variance is not positive, a moment is beyond the range of
            float32, or the settings do not give one unit or variance per target.
    """
    refuse_not_finite(values, member, split, rows)
    center, scale = (np.asarray(unit, np.float64) for unit in member.units or (0.0, 1.0))
    count = values.shape[1] if member.output == "mean" else values.shape[1] // 2
    first, second = values[:, :count], values[:, count:]
    if any(unit.ndim and unit.size != count for unit in (center, scale)):
        raise EdistillError(
            f"Member {member.name} says {count} targets a row, and teachers.standardized has {center.size} means and "
            f"{scale.size} deviations. Give mean "
            "and std a number for each target."
        )
    mean = center + scale * first
    if member.variance is not None:
        _refuse_other_variances(member, count)
        log_variance = np.broadcast_to(np.log(member.variance), mean.shape)
    elif member.output == "mean-variance":
        if second.min() <= 0:
            at, target = divmod(int(second.argmin()), second.shape[1])
            raise EdistillError(
                f"Member {member.name} returns the variance {second[at, target]:.4g} at row {rows[at]} of {split}, and "
                'a variance is above 0. If it is a log-variance, set teachers.output = "mean-logvar"; else give the '
                "member a floor (torch.nn.functional.softplus(v) + 1e-6)."
            )
        log_variance = np.log(second) + 2 * np.log(scale)
    else:
        log_variance = second + 2 * np.log(scale)
    beyond = (np.abs(mean) > LARGEST_MEAN) | (np.abs(log_variance) > LARGEST_LOG_VARIANCE)
    if beyond.any():
        at, target = divmod(int(beyond.argmax()), beyond.shape[1])
        raise EdistillError(
            f"Member {member.name} says {mean[at, target]:.4g} with a log-variance of {log_variance[at, target]:.4g} "
            f"at row {rows[at]} of {split}: beyond {LARGEST_MEAN:.0e} or ±{LARGEST_LOG_VARIANCE:g}, single precision "
            "fails. "
            + (
                'If it returns a variance, set teachers.output = "mean-variance"; else remove the member, or give '
                if member.output == "mean-logvar"
                else "Remove the member, or give "
            )
            + "the target in another unit."
        )
    return np.concatenate([mean, log_variance], axis=1).astype(np.float32)


def _refuse_other_variances(member: Member, count: int) -> None:
    """Raise EdistillError unless there is one variance per target, since targets need not share a unit."""
    given = np.atleast_1d(np.asarray(member.variance, np.float64))
    if given.size == count:
        return
    told = f"{given[0]:g}" if given.size == 1 else f"a list of {given.size}"
    like = ", ".join([f"{given[0]:g}"] * min(count, 2)) + (", …" if count > 2 else "")
    raise EdistillError(
        f"Member {member.name} says {count} target{'s' * (count > 1)} a row, and teachers.variance is {told}. Give "
        + ("a number" if count == 1 else f"a list of {count} numbers, one for each target in its own unit squared")
        + f" (variance = {like if count == 1 else f'[{like}]'})."
    )


def as_answers(raw: Tensor, member: Member) -> Tensor:
    """`checked` for raw outputs (B, D or 2D), in torch and unchecked."""
    values = raw.double()
    count = values.shape[1] if member.output == "mean" else values.shape[1] // 2
    center, scale = (values.new_tensor(unit) for unit in member.units or (0.0, 1.0))
    mean = center + scale * values[:, :count]
    if member.variance is not None:
        log_variance = mean.new_tensor(member.variance).log().expand_as(mean)
    elif member.output == "mean-variance":
        log_variance = values[:, count:].log() + 2 * scale.log()
    else:
        log_variance = values[:, count:] + 2 * scale.log()
    return torch.cat([mean, log_variance], dim=1).float()


def check_units(
    name: str, means: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]], units: tuple[float, float] | None
) -> None:
    """Refuse a member whose means are evidently in another unit than the targets.

    The unit is evident only from means that follow the targets, so that a linear fit on them explains half of the
    targets' variance or more. It is then another unit if, with all rows weighted equally,
    - the average of the means lies farther from that of the targets than the targets spread; or
    - the means vary so much that, even without their bias, the targets' own mean would be nearer; or
    - read in another way, in the target's unit or standardized by the targets, the means explain half of the variance
      or more, and at least twice what they explain as they are, without their bias.
    A member whose bias is smaller than the spread, or whose means vary too little, meets none of these conditions.

    Args:
        name: the member's name.
        means, targets: (N,).
        units: the center and scale by which its outputs were taken to be standardized; None if they were not.

    Raises:
        CacheError: the means are in another unit.
    """
    if len(targets) < SMALLEST_ROWS or _constant(targets) or _constant(means):
        return
    means, targets = means.astype(np.float64), targets.astype(np.float64)
    center, spread, own = float(targets.mean()), float(targets.std()), float(means.std())
    correlation = float(np.mean((means - means.mean()) * (targets - center))) / (own * spread)
    if correlation <= 0 or correlation**2 < EXPLAINED:
        return
    off = abs(float(means.mean()) - center) / spread
    unbiased = 2 * correlation * own / spread - (own / spread) ** 2  # the share of variance explained without the bias
    raw = means if units is None else (means - units[0]) / units[1]
    otherwise = max(1 - float(np.mean((taken - targets) ** 2)) / spread**2 for taken in (raw, center + spread * raw))
    if off <= 1 and unbiased >= 0 and not otherwise >= max(EXPLAINED, 2 * unbiased):
        return
    taken = "in the target's unit" if units is None else f"standardized by {units}"
    raise CacheError(
        f"Member {name} answers {means.mean():.4g} ± {own:.4g}, and the targets are {center:.4g} ± {spread:.4g}, "
        f"though the two agree but for the unit (correlation {correlation:.2f}). The settings say that its outputs are "
        f"{taken}. Set teachers.standardized = {{ mean = …, std = … }} to what the targets were standardized by when "
        "the member was trained, or leave it out where they were not; then run edistill cache-logits --overwrite."
    )


def check_spread(member: Member, moments: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> None:
    """Refuse a member whose second output, or stated variance, is evidently not what the settings say.

    Targets lie about one standard deviation from the mean: (y − μ)²/σ² has a mean of 1 and a median of about `MIDDLE`.
    A member is refused if its median is off by more than a factor `FAR_OFF`, and reading the same numbers as a
    variance, a log-variance, a standard deviation or its logarithm brings both mean and median within a factor `NEAR`.
    Means alone would mistake an overfitted member for one of those, since a few rows decide them. A stated variance is
    read as a standard deviation, or as one of the standardized target.

    Args:
        member: the member, for one target.
        moments: (N, 2), means and log-variances in the target's unit.
        targets: (N,).

    Raises:
        EdistillError: another reading fits.
    """
    if len(targets) < SMALLEST_ROWS:
        return
    squares = (moments[:, 0].astype(np.float64) - targets) ** 2
    log_variance = moments[:, 1].astype(np.float64)
    as_said = float(np.median(squares * np.exp(-log_variance))) / MIDDLE
    if 1 / FAR_OFF <= as_said <= FAR_OFF:
        return
    if member.variance is not None:
        unit = float(np.std(targets)) if member.units is None else float(np.asarray(member.units[1]))
        return _check_stated(member.name, math.exp(float(log_variance[0])), squares, unit, as_said)
    _, scale = (float(np.asarray(unit)) for unit in member.units or (0.0, 1.0))  # for one target
    second = log_variance - 2 * np.log(scale)  # as the member returned it, if that was a log-variance
    readings: dict[str, NDArray[np.float64]] = {}
    if member.output == "mean-variance":
        second = np.exp(second)
    # read as log-variances, small variances would all mean a variance near 1, which fits any standardized target
    if member.output == "mean-logvar" or np.median(second) > 1:
        readings |= {"a log-variance": second, "the logarithm of a standard deviation": 2 * second}
    if second.min() > 0:
        readings |= {"a variance": np.log(second), "a standard deviation": 2 * np.log(second)}
    for what, reading in readings.items():
        distances = squares * np.exp(np.clip(-reading, -80, 80)) / scale**2
        middle = float(np.median(distances)) / MIDDLE
        if _fits(distances):
            raise EdistillError(
                f"Member {member.name} is said to return {member.output}, but then targets lie {as_said**0.5:.3g} of "
                f"its standard deviations from its mean; read as {what}, {middle**0.5:.3g}. Set teachers.output to "
                "what it returns, or convert it in a factory of your own (teachers.model)."
            )


def _check_stated(name: str, variance: float, squares: NDArray[np.float64], unit: float, as_said: float) -> None:
    """Refuse a stated variance if another reading of it fits `squares`, (y − μ)² (N,); see `check_spread`."""
    readings = {
        "a standard deviation": variance**2,
        f"that of the target divided by its standard deviation, {unit:.4g}": variance * unit**2,
    }
    for what, reading in readings.items():
        if reading > 0 and _fits(squares / reading):  # 0 of a constant target
            otherwise = (float(np.median(squares)) / reading / MIDDLE) ** 0.5
            raise EdistillError(
                f"Member {name} is said to have the variance {variance:.4g}, but then targets lie {as_said**0.5:.3g} "
                f"of its standard deviations from its mean; read as {what}, {otherwise:.3g}. Set teachers.variance in "
                f"the target's own unit squared, here {reading:.4g}."
            )


def _fits(distances: NDArray[np.float64]) -> bool:
    """Whether (y − μ)²/σ², (N,), have mean and median of about those of a squared standard normal variable."""
    return all(1 / NEAR <= found <= NEAR for found in (np.mean(distances), np.median(distances) / MIDDLE))


def _constant(values: NDArray[np.floating[Any]]) -> bool:
    """Whether all values are equal up to float32 rounding."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max())
