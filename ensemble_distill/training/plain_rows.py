"""Rows as they are, without views: for validation during training and for BatchNorm statistics after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ensemble_distill.data.source import Array, Source, View
from ensemble_distill.facts import Preprocessing

BATCH = 256
BATCHNORM_ROWS = 10_000  # means and variances are settled long before


class PlainRows(Dataset[Array]):
    """Undistorted inputs of a source."""

    def __init__(self, source: Source, view: View, to: Preprocessing | None) -> None:
        self.source, self.view, self.to = source, view, to

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Array:
        return self.view.plan(0, 0, row, len(self.source)).x([self.source.item(row)], self.to)


def plain_batches(
    source: Source,
    view: View,
    to: Preprocessing | None,
    workers: int,
    batches: Sequence[Sequence[int]] | None = None,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """(rows, inputs) batch by batch, by default all rows in order, `BATCH` at a time; `view` is the one named none."""
    if batches is None:
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


@torch.no_grad()
def reestimate_batchnorm(
    body: nn.Module, source: Source, view: View, to: Preprocessing | None, device: torch.device
) -> None:
    """Replace BatchNorm's running statistics by those of plain inputs, after training on mixed or noisy ones.

    All else is as in use: dropout is off.
    """
    layers = [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers or len(source) < 2:  # one row has no variance
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over the batches
    training = body.training
    body.eval()
    for layer in layers:
        layer.train()
    rows = np.unique(np.linspace(0, len(source) - 1, BATCHNORM_ROWS, dtype=np.int64)).tolist()
    # batches count alike, so they are of one size; and they mix classes, since a folder is sorted by class
    count = -(-len(rows) // BATCH)
    for _, x in plain_batches(source, view, to, workers=0, batches=[rows[start::count] for start in range(count)]):
        body(x.to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    body.train(training)
