"""Which of the data's classes each output of a member means: read from names, or checked by accuracy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.errors import EdistillError, first_few

Order = tuple[int, ...]

LEAST_GAIN = 0.1  # least gain in the share of right rows, on average over the classes that look swapped
LEAST_RATIO = 2.0  # least ratio of the share of right rows after reordering to that before
CHANCE = 1e-6  # the probability with which a guessing member may be refused
LARGEST = 2000  # classes that are examined together, since every pair of them is counted
KNOWN = -0.35  # a member that knows S occurring classes has a mean F1 of at least S ** KNOWN once reordered
REMEDY = (
    "Name the data's class folders so that their order is the one the member was trained in, or give the member's "
    "class names: label_names in config.json, or class_map in args.yaml."
)


def order_by_names(name: str, names: Sequence[str], classes: Sequence[str], source: str) -> Order | None:
    """Map a member's outputs to the data's classes by name.

    Args:
        name: the member's name.
        names: the names of the member's outputs, in order.
        classes: the data's class names, in the order of its labels.
        source: the file that holds `names`, for messages.

    Returns:
        For each output, the index of its class in `classes`; None if both orders are the same.

    Raises:
        EdistillError: the two are not the same set of names, or a name occurs twice.
    """
    if sorted(set(names)) != sorted(classes) or len(names) != len(classes):
        alone = sorted(set(names) - set(classes)), sorted(set(classes) - set(names))
        told = [
            f"only {who}: {first_few(extra, 5)}"
            for who, extra in zip(("there", "in the data"), alone, strict=True)
            if extra
        ]
        raise EdistillError(
            f"{name}: {source} names {len(names)} classes, the data has {len(classes)}"
            + (f" ({'; '.join(told)})" if told else f", and {first_few(_repeated(names))} comes twice")
            + f". Rename the data's classes or fix {source}, so that both have the same names."
        )
    at = {label: index for index, label in enumerate(classes)}
    order = tuple(at[label] for label in names)
    return None if order == tuple(range(len(classes))) else order


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted(label for label, count in Counter(names).items() if count > 1)


def check_class_order(
    name: str, labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str] | None = None
) -> str | None:
    """Refuse a member whose outputs are evidently in another order than the data's classes.

    If a member predicts its most probable class, the right class is the most frequent one in each predicted column, so
    reordering cannot raise its accuracy. If it cannot distinguish two classes, it treats their rows alike, and
    reordering takes from one class what it gives to the other. Only noise and misnaming remain. The best reordering is
    found by linear assignment and split into its cycles. A cycle counts as misnaming if all of the following hold:
    - The share of right predictions among its classes rises by `LEAST_GAIN` and by the factor `LEAST_RATIO`, both
      averaged over classes and averaged over rows. Without the former, always predicting one class could look swapped
      with the most frequent class; without the latter, a rare class that resembles a frequent one could.
    - By Hoeffding's bound, guessing gains as much with probability `CHANCE` at most, over all cycles of that length.
      Few rows therefore never refuse a member: at 80 % accuracy, two swapped classes of ten take some thirty rows
      each, ten shuffled ones a dozen.
    - Reordered, the member knows its classes: their mean F1 is at least S ** `KNOWN` if S classes occur (.78 for two,
      .45 for ten, .09 for a thousand). An untrained network does not guess but separates rows by how they look: on
      handwritten digits, a quarter of such networks meet the first two conditions. One or two in a hundred meet this
      one as well; one in ten if there are a few, clustered classes, for which the condition cannot be stricter.

    If there are more than `LARGEST` classes, it examines those that are mostly predicted as another class, the most
    frequent first.

    Args:
        name: the member's name.
        labels, predicted: (N,), each row's class, and the one that the member finds most probable in the assumed order.
        classes: the data's names; None if it has none.

    Returns:
        A warning for a member that meets all conditions but the last; None for others.

    Raises:
        EdistillError: some classes are swapped.
    """
    seen, rows = np.unique(labels, return_counts=True)  # classes without rows are no evidence
    if len(seen) > LARGEST:
        kept = np.isin(labels, _doubtful(seen, rows, labels, predicted))
        labels, predicted = labels[kept], predicted[kept]
        seen, rows = np.unique(labels, return_counts=True)
    counts = _among(seen, labels, predicted)
    swapped = [cycle for cycle in _cycles(counts, rows) if _is_misnamed(counts, rows, cycle)]
    if not swapped:
        return None
    known = [cycle for cycle in swapped if _is_known(counts, rows, cycle)]
    right = np.trace(counts)
    reordered = right + sum(_right(counts, cycle).sum() - np.diag(counts)[cycle].sum() for cycle in known or swapped)
    named = [str(label) if classes is None else classes[label] for label in seen]
    pairs = [
        f"{named[label]} is called {named[called]}"
        for cycle in known or swapped
        for label, called in zip(cycle, np.roll(cycle, -1), strict=True)
    ]
    told = (
        f"As they are, {right / rows.sum():.1%} of {int(rows.sum())} rows are right; reordered, "
        f"{reordered / rows.sum():.1%} would be ({first_few(pairs, 4)})."
    )
    if known:
        raise EdistillError(f"{name}: its outputs look to be in another class order than the data. {told} {REMEDY}")
    little = f"{name} knows little, or its outputs are in another class order than the data."
    return f"{little} {told} If it was trained, {REMEDY[0].lower()}{REMEDY[1:]}"


def _doubtful(
    seen: NDArray[np.int64], rows: NDArray[np.int64], labels: NDArray[np.int64], predicted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`LARGEST` of the classes that occur: first those mostly predicted as another class, the most frequent first."""
    right = np.bincount(np.searchsorted(seen, labels), weights=labels == predicted)
    order = np.argsort(np.where(2 * right < rows, -rows, 0), kind="stable")
    return seen[order[:LARGEST]]


def _among(seen: NDArray[np.int64], labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Counts of rows by label and predicted class, (S, S), over the S classes that occur.

    Other predictions are left out: a few hundred rows have few of tens of thousands of classes.
    """
    at = np.searchsorted(seen, predicted)
    among = seen[at.clip(max=len(seen) - 1)] == predicted
    pairs = np.searchsorted(seen, labels[among]) * len(seen) + at[among]
    return np.bincount(pairs, minlength=len(seen) ** 2).reshape(len(seen), len(seen)).astype(np.float64)


def _cycles(counts: NDArray[np.float64], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The cycles of more than one class in the reordering that is right most often, with classes weighted equally.

    In a cycle, rows of each class are predicted as the next one.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped,unused-ignore]

    _, assigned = linear_sum_assignment(counts / rows[:, None], maximize=True)
    cycles, left = [], set(range(len(rows)))
    while left:
        cycle = [min(left)]
        while (following := int(assigned[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        if len(cycle) > 1:
            cycles.append(np.array(cycle))
    return cycles


def _right(counts: NDArray[np.float64], cycle: NDArray[np.int64]) -> NDArray[np.float64]:
    """The number of rows of each class of a cycle that would be right if its classes were renamed, (L,)."""
    return counts[cycle, np.roll(cycle, -1)]


def _is_misnamed(counts: NDArray[np.float64], rows: NDArray[np.int64], cycle: NDArray[np.int64]) -> bool:
    before, after, total = counts[cycle, cycle], _right(counts, cycle), rows[cycle]
    by_class = float((before / total).mean()), float((after / total).mean())
    by_row = before.sum() / total.sum(), after.sum() / total.sum()
    if any(b - a < LEAST_GAIN or b < LEAST_RATIO * a for a, b in (by_class, by_row)):
        return False
    # the gain is a sum over rows, each of which changes it by at most 1 / (rows of its class) in either direction
    gain = len(cycle) * (by_class[1] - by_class[0])
    evidence = gain**2 / (2 * (1 / total).sum())
    return bool(evidence >= len(cycle) * math.log(len(rows)) - math.log(CHANCE))


def _is_known(counts: NDArray[np.float64], rows: NDArray[np.int64], cycle: NDArray[np.int64]) -> bool:
    """Whether the cycle's classes, once renamed, reach the mean F1 of a member that knows them."""
    called = counts.sum(0)[np.roll(cycle, -1)]
    f1 = 2 * _right(counts, cycle) / (rows[cycle] + called)
    return bool(f1.mean() >= len(rows) ** KNOWN)
