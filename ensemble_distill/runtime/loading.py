"""One way to load batches, in this process or in others, whose errors stay readable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ensemble_distill.errors import EdistillError

Row = TypeVar("Row")
Batch = TypeVar("Batch")


class _Carrying(Dataset[Any]):
    """Hands an `EdistillError` on as a value: torch would raise it in the parent as a page of traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except EdistillError as error:
            return error


class _Collate:
    """Collates rows, or hands on the first error among them."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        return next((row for row in rows if isinstance(row, EdistillError)), None) or self.collate(rows)


def batches(
    dataset: Dataset[Row],
    batch_sampler: Iterable[Sequence[Any]],
    collate: Callable[[list[Row]], Batch],
    workers: int,
    device: torch.device,
) -> Iterator[Batch]:
    """The batches of a sampler, in its order whatever the number of worker processes.

    Raises:
        EdistillError: a row could not be read; the message of the process that read it.
    """
    loader: DataLoader[Any] = DataLoader(
        _Carrying(dataset),
        batch_sampler=batch_sampler,  # type: ignore[arg-type]  # torch names the sampler's class, and takes iterables
        collate_fn=_Collate(collate),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # a generator of its own: else the loader draws from the one that dropout does, once more in each resume
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, EdistillError):
            raise batch
        yield batch
