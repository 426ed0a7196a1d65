"""What members are shown of rows: some views, in each preprocessing that one of the members wants."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.source import Array
from ensemble_distill.runtime.loading import batches
from ensemble_distill.teachers.answering import Inputs

Seen = dict[tuple[int, Inputs | None], Tensor]  # (B, …) by view and wanted inputs


class _Shown(Dataset[list[Array]]):
    """The inputs of each row: for each view, for each of the wanted inputs. Runs in loader processes."""

    def __init__(self, rows: ViewedRows, views: Sequence[int], inputs: Sequence[Inputs]) -> None:
        self.rows, self.views, self.preprocessings = rows, views, [one.preprocessing for one in inputs]

    def __len__(self) -> int:
        return len(self.rows.source)

    def __getitem__(self, row: int) -> list[Array]:
        return self.rows.inputs(row, self.views, self.preprocessings)


def seen(rows: ViewedRows, at: Sequence[int], views: Sequence[int], inputs: Sequence[Inputs]) -> Seen:
    """Some rows in some views, as members that want these inputs are shown them."""
    shown = _Shown(rows, views, inputs)
    return dict(zip(itertools.product(views, inputs), _stack([shown[row] for row in at]), strict=True))


def loaded(
    rows: ViewedRows,
    cut: Iterable[range],
    views: Sequence[int],
    inputs: Sequence[Inputs],
    workers: int,
    device: torch.device,
) -> Iterator[Seen]:
    """What `seen` gives, for batches of rows from loader processes; `device` is where the batches will go."""
    shown = _Shown(rows, views, inputs)
    for stacked in batches(shown, [list(batch) for batch in cut], _stack, workers, device):
        yield dict(zip(itertools.product(views, inputs), stacked, strict=True))


def _stack(rows: list[list[Array]]) -> list[Tensor]:
    """Rows' inputs as batches, one for each place in a row's list."""
    return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
