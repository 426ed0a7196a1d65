"""What a task makes of rows: values of each row, and figures that are reductions of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Values = dict[str, NDArray[Any]]  # figures of each row by name: (N,) or (N, M) and, of several answers, (N, …, D)
Figures = dict[str, float | None]  # None: it does not apply; never NaN

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")
EACH = {name: f"{name}_each" for name in UNCERTAINTIES}  # the rows that have them of each answer, (N, D) or (N, M, D)


def means(rows: Mapping[str, NDArray[Any]], sources: Mapping[str, str]) -> Figures:
    """Each figure as the mean of the rows it comes from; None where there are none.

    Args:
        sources: figure to the name of its rows.
    """
    return {figure: float(rows[source].mean()) if source in rows else None for figure, source in sources.items()}


def each_rows(total: Tensor, data: Tensor, model: Tensor | None) -> Values:
    """Uncertainties of each answer as rows; model uncertainty does not apply to a single distribution."""
    found = dict(zip(EACH.values(), (total, data, model), strict=True))
    return {name: values.numpy() for name, values in found.items() if values is not None}


def each_figures(rows: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Figures:
    """Of each answer its mean uncertainties, `model_uncertainty.NAME`; None where one does not apply."""
    return {
        f"{uncertainty}.{name}": float(rows[each][..., at].mean()) if each in rows else None
        for at, name in enumerate(names)
        for uncertainty, each in EACH.items()
    }
