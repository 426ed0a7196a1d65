"""What an evaluation is made of: values of each row, and the figures they reduce to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Rows = dict[str, NDArray[np.float64]]  # each (N,) or, for the members, (N, M)
Figures = dict[str, float | None]  # None: it does not apply; never NaN

UNCERTAINTIES = ("total_uncertainty", "data_uncertainty", "model_uncertainty")


def means(rows: Mapping[str, NDArray[np.float64]], sources: Mapping[str, str]) -> Figures:
    """Each figure as the mean of the rows it comes from; None where there are none.

    Args:
        sources: figure to the name of its rows.
    """
    return {figure: float(rows[source].mean()) if source in rows else None for figure, source in sources.items()}
