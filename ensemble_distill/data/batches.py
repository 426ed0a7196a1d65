"""Undistorted rows in batches, for validation during training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from ensemble_distill.data.rows import plain_input
from ensemble_distill.data.source import Array, Source, positions_of
from ensemble_distill.facts import AnyPreprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset

BATCH = 256  # answers in a batch


class PlainRows:
    """Undistorted inputs of a source, by row."""

    def __init__(self, source: Source, to: AnyPreprocessing | None) -> None:
        self.source, self.to = source, to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Array:
        return plain_input(self.source.item(row), self.to)


def plain_batches(
    source: Source, to: Sequence[AnyPreprocessing | None], workers: int, device: torch.device
) -> Iterator[tuple[range, list[Tensor]]]:
    """Yields (rows, inputs) for all rows in order; inputs (B, ...) lie on the device, one for each of `to`.

    Equal preprocessing is rendered once, and its tensor is shared.
    """
    from ensemble_distill.runtime.loading import batches

    every, different = range(len(source)), list(dict.fromkeys(to))
    size = at_once(source)
    cut = [every[i : i + size] for i in range(0, len(every), size)]
    at = [list(rows) for rows in cut]
    streams = [
        batches(cast("Dataset[Array]", PlainRows(source, each)), at, _stack, workers, device) for each in different
    ]
    for rows, *inputs in zip(cut, *streams, strict=True):
        on_device = [x.to(device) for x in inputs]
        yield rows, [on_device[different.index(each)] for each in to]


def at_once(source: Source) -> int:
    """How many rows make a batch: 256, or as many as have about 256 positions."""
    return max(1, BATCH // (positions_of(source) or 1))


def _stack(inputs: list[Array]) -> Tensor:
    import torch

    return torch.from_numpy(np.stack(inputs))
