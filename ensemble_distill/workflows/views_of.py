"""The rows of a split in its views, for members that are asked elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.facts import Preprocessing
from ensemble_distill.settings import Settings
from ensemble_distill.workspace import Workspace


def views_of(settings: Settings, split: str = "train") -> Iterator[NDArray[np.float32]]:
    """Each view of a split in turn, (N, …): what members say of view v and row i is at [v, i] of ready-made outputs.

    A view is a pure function of `views.seed`, its number and the row's, and so the same here, in the pass and in
    training. Pictures are (N, C, H, W) in [0, 1], in the size of the first one or of `teachers.preprocessing`; arrays
    are as they are. All of one view is held at once.

    Args:
        split: train or transfer, whose rows have views; others are seen as they are, once.

    Raises:
        EdistillError: there is no such split, or it has no such views.
    """
    plan = Workspace(settings).splits([split])[split]
    rows, to = plan.rows(), None
    if plan.source.kind == "pixels":
        asked = settings.teachers.preprocessing
        size = tuple(plan.source.item(0).x.shape[:2]) if asked is None or asked.size is None else asked.size
        to = Preprocessing(size, (0.0,), (1.0,))
    for view in range(plan.count):
        yield np.stack([rows.inputs(row, [view], [to])[0] for row in range(len(plan.source))])
