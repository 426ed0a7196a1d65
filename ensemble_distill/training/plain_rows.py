"""Rows as they are, without views: for validation during training, and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ensemble_distill.data.source import Array, Source, View
from ensemble_distill.facts import Preprocessing

BATCH = 256


class PlainRows(Dataset[Array]):
    """Undistorted inputs of a source."""

    def __init__(self, source: Source, view: View, to: Preprocessing | None) -> None:
        self.source, self.view, self.to = source, view, to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Array:
        return self.view.plan(0, 0, row, len(self.source)).x([self.source.item(row)], self.to)


def plain_batches(source: Source, view: View, to: Preprocessing | None, workers: int) -> Iterator[tuple[range, Tensor]]:
    """(rows, inputs) in order, `BATCH` at a time; `view` is the one named none."""
    every = range(len(source))
    batches = [every[i : i + BATCH] for i in range(0, len(every), BATCH)]
    loader = DataLoader(
        PlainRows(source, view, to),
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=_stack,
        num_workers=workers,
        generator=torch.Generator(),  # validation leaves the one that dropout draws from alone
    )
    return zip(batches, loader, strict=True)


def _stack(inputs: list[Array]) -> Tensor:
    return torch.from_numpy(np.stack(inputs))
