"""What the members are shown of a row: its views, rendered now, or the inputs that the cache stores of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ensemble_distill.cache.reader import StoredInputs
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.data.rendering import normalize
from ensemble_distill.data.source import Array, Kind
from ensemble_distill.facts import Preprocessing


class Rendered(Dataset[list[Array]]):
    """Row to its inputs: for each view, for each distinct preprocessing. Runs in the loader's processes."""

    def __init__(self, plan: SplitPlan, views: Sequence[int], preprocessings: Sequence[Preprocessing | None]):
        self.plan, self.views, self.preprocessings = plan, views, preprocessings

    def __len__(self) -> int:
        return len(self.plan.source)

    def __getitem__(self, row: int) -> list[Array]:
        source = self.plan.source
        own = source.item(row)
        inputs = []
        for view in self.views:
            plan = self.plan.view.plan(self.plan.seed, view, row, len(source))
            items = [own, *(source.item(other) for other in plan.rows[1:])]
            inputs += [plan.x(items, to) for to in self.preprocessings]
        return inputs


class Stored(Dataset[list[Array]]):
    """Rows as members take them, from stored inputs, which are normalized for each distinct preprocessing."""

    def __init__(
        self, inputs: StoredInputs, kind: Kind, views: Sequence[int], preprocessings: Sequence[Preprocessing | None]
    ) -> None:
        self.inputs, self.kind, self.views, self.preprocessings = inputs, kind, views, preprocessings

    def __len__(self) -> int:
        return self.inputs.rows

    def __getitem__(self, row: int) -> list[Array]:
        stored = [self.inputs.read(row, view) for view in self.views]
        return [normalized(x, self.kind, to) for x in stored for to in self.preprocessings]


def shown_of(
    plan: SplitPlan, inputs: StoredInputs | None, views: Sequence[int], preprocessings: Sequence[Preprocessing | None]
) -> Rendered | Stored:
    """Row to its inputs, from the stored ones where there are any."""
    if inputs is None:
        return Rendered(plan, views, preprocessings)
    return Stored(inputs, plan.source.kind, views, preprocessings)


def normalized(x: Array, kind: Kind, to: Preprocessing | None) -> Array:
    """A stored input (C, H, W) as a network takes it; tensors already are."""
    return normalize(x, to) if kind == "pixels" and to is not None else x


def stack(rows: list[list[Array]]) -> list[Tensor]:
    """Rows' inputs as batches, one for each place in a row's list."""
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
