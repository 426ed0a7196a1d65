"""What a task makes of rows: values of each row, and figures that are reductions of them.

A value is NaN where it does not exist: a member's own of a row that it does not answer, and the model uncertainty of a
row that one member answers. No figure counts those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# figures of each row by name: (N,) or (N, M) and, of several answers, (N, …, D); NaN where one does not exist
Values = dict[str, NDArray[Any]]
Figures = dict[str, float | None]  # None: it does not apply; never NaN

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
# what each is of a row, in words; of a Dirichlet the members are those that it holds likely
ENTROPIES = {
    "total_uncertainty": "the entropy of what is predicted: how unsure, for whatever reason",
    "data_uncertainty": "aleatoric: the mean entropy of the members as the student holds them, what each leaves open",
    "model_uncertainty": "epistemic: the total less that, how far they disagree; high where the ensemble has not "
    "learned what to say",
}
VARIANCES = {
    "total_uncertainty": "the variance of what is predicted: how far off it may be, for whatever reason",
    "data_uncertainty": "aleatoric: the mean of the variances that the heads tell, what each leaves open",
    "model_uncertainty": "epistemic: the variance of the heads' means, how far they disagree; high where the ensemble "
    "has not learned what to say",
}
EACH = {name: f"{name}_each" for name in UNCERTAINTIES}  # the rows that have them of each answer, (N, D) or (N, M, D)


def row_mean(values: NDArray[Any]) -> float | None:
    """The mean over rows, and over members and answers where there are several: of each one's own mean over the rows
    where it exists. None where there is no value."""
    missing = np.isnan(values)
    if not missing.any():
        return float(values.mean())
    there = (~missing).sum(0)
    own = np.where(missing, 0, values).sum(0) / np.where(there, there, 1)
    return float(own[there > 0].mean()) if there.any() else None


def each_member(*values: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Of rows (N, M, …) those that each member answers, (n, …); without members that answer none.

    Args:
        values: NaN in the first of them where a member does not answer.
    """
    missing = np.isnan(values[0]).reshape(*values[0].shape[:2], -1).any(-1)
    for member, none in enumerate(missing.T):
        if not none.all():
            yield tuple(one[:, member] if not none.any() else one[~none, member] for one in values)


def means(rows: Mapping[str, NDArray[Any]], sources: Mapping[str, str]) -> Figures:
    """Each figure as the mean of the rows it comes from; None where there are none.

    Args:
        sources: figure to the name of its rows.
    """
    return {figure: row_mean(rows[source]) if source in rows else None for figure, source in sources.items()}


def each_rows(total: Tensor, data: Tensor, model: Tensor | None) -> Values:
    """Uncertainties of each answer as rows; model uncertainty does not apply to a single distribution."""
    found = dict(zip(EACH.values(), (total, data, model), strict=True))
    return {name: values.numpy() for name, values in found.items() if values is not None}


def each_figures(rows: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Figures:
    """Of each answer its mean uncertainties, `model_uncertainty.NAME`; None where one does not apply."""
    return {
        f"{uncertainty}.{name}": row_mean(rows[each][..., at]) if each in rows else None
        for at, name in enumerate(names)
        for uncertainty, each in EACH.items()
    }
