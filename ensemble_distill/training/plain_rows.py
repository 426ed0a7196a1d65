"""Rows as they are, without views: for validation during training, and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.source import Array, Source
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runtime.loading import batches

BATCH = 256
CPU = torch.device("cpu")


class PlainRows(Dataset[Array]):
    """Undistorted inputs of a source."""

    def __init__(self, source: Source, to: Preprocessing | None) -> None:
        self.source, self.to = source, to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Array:
        return plain_input(self.source.item(row), self.to)


def plain_batches(
    source: Source, to: Preprocessing | None, workers: int, device: torch.device = CPU
) -> Iterator[tuple[range, Tensor]]:
    """(rows, inputs) in order, `BATCH` at a time; `device` is where they will go."""
    every = range(len(source))
    cut = [every[i : i + BATCH] for i in range(0, len(every), BATCH)]
    return zip(cut, batches(PlainRows(source, to), [list(b) for b in cut], _stack, workers, device), strict=True)


def _stack(inputs: list[Array]) -> Tensor:
    return torch.from_numpy(np.stack(inputs))
