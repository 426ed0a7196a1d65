"""Values of each row, and the figures that are reduced from them.

A value that does not exist is NaN: any of a member's on a row that it does not answer, and model uncertainty on a row
that only one member answers. Figures leave those out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# values of each row by name: (N,) or (N, M), and (N, …, D) with several answers per row; NaN where one does not exist
Values = dict[str, NDArray[Any]]
Figures = dict[str, float | None]  # None for a figure that does not apply; never NaN

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
# each uncertainty of a row in words; for a Dirichlet, the heads are draws from it
ENTROPIES = {
    "total_uncertainty": "the entropy of the prediction: how unsure it is, for whatever reason",
    "data_uncertainty": "aleatoric: the mean entropy of the heads' predictions, which remains where they agree",
    "model_uncertainty": "epistemic: total minus data uncertainty, how far the heads disagree; high where the ensemble "
    "has learned too little",
}
VARIANCES = {
    "total_uncertainty": "the variance of the prediction: how far off it may be, for whatever reason",
    "data_uncertainty": "aleatoric: the mean of the heads' variances, which remains where they agree",
    "model_uncertainty": "epistemic: the variance of the heads' means, how far they disagree; high where the ensemble "
    "has learned too little",
}
EACH = {name: f"{name}_each" for name in UNCERTAINTIES}  # the names of per-answer values, (N, D) or (N, M, D)


def row_mean(values: NDArray[Any]) -> float | None:
    """The mean of values over rows and, if there are several, over members and answers.

    Each member's or answer's values are first averaged over the rows where they exist. None if there are no values.
    """
    missing = np.isnan(values)
    if not missing.any():
        return float(values.mean())
    there = (~missing).sum(0)
    own = np.where(missing, 0, values).sum(0) / np.where(there, there, 1)
    return float(own[there > 0].mean()) if there.any() else None


def each_member(*values: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """For each member, its values on the rows that it answers, (n, …); members that answer no row are left out.

    Args:
        values: (N, M, …); NaN in the first array marks rows that a member does not answer.
    """
    missing = np.isnan(values[0]).reshape(*values[0].shape[:2], -1).any(-1)
    for member, none in enumerate(missing.T):
        if not none.all():
            yield tuple(one[:, member] if not none.any() else one[~none, member] for one in values)


def means(rows: Mapping[str, NDArray[Any]], sources: Mapping[str, str]) -> Figures:
    """Each figure as the mean of its values; None if there are none.

    Args:
        rows: values by name.
        sources: for each figure, the name of its values.
    """
    return {figure: row_mean(rows[source]) if source in rows else None for figure, source in sources.items()}


def each_rows(total: Tensor, data: Tensor, model: Tensor | None) -> Values:
    """The uncertainties of each answer as values; without model uncertainty if that is None."""
    found = dict(zip(EACH.values(), (total, data, model), strict=True))
    return {name: values.numpy() for name, values in found.items() if values is not None}


def each_figures(rows: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Figures:
    """The mean uncertainties of each answer, as in `model_uncertainty.NAME`; None for one that does not apply."""
    return {
        f"{uncertainty}.{name}": row_mean(rows[each][..., at]) if each in rows else None
        for at, name in enumerate(names)
        for uncertainty, each in EACH.items()
    }
