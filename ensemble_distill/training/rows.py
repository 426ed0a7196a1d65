"""The rows a student trains on: inputs as the members saw them, rendered again or stored, with the members' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ensemble_distill.cache.reader import StoredInputs
from ensemble_distill.cache.records import Records
from ensemble_distill.data.memo import Memo
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.source import Array, Source, View
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import AnyPreprocessing, Preprocessing
from ensemble_distill.training.order import Index

RENDERED = 2**27  # maximum bytes of rendered rows kept in memory


@dataclass(frozen=True)
class CachedSplit:
    """A split and its records; the members saw it through `view` with seed `seed`.

    If the cache stores the inputs, because they were moved along members' gradients, those are used, and the view only
    says how labels mix.
    """

    source: Source
    view: View
    seed: int
    records: Records
    inputs: StoredInputs | None = None


@dataclass(frozen=True)
class Example:
    """One row in one view: its input, its label and that of the row mixed into it.

    Labels mean nothing unless `known`.
    """

    index: Index
    x: Array
    own: Array
    partner: Array
    weight: float
    known: bool


@dataclass(frozen=True)
class Rows:
    """B rows as the loader returns them."""

    indices: NDArray[np.int64]  # (B, 2): row and view
    x: Tensor
    own: Tensor
    partner: Tensor
    weight: Tensor
    known: Tensor

    def pin_memory(self) -> Rows:
        tensors = (self.x, self.own, self.partner, self.weight, self.known)
        return Rows(self.indices, *(tensor.pin_memory() for tensor in tensors))


class CachedRows(Dataset[Example]):
    """Several splits end to end (`train`, then `transfer`), indexed by (row, view)."""

    def __init__(self, splits: Sequence[CachedSplit], to: AnyPreprocessing | None) -> None:
        """Raises: EdistillError if inputs are stored in another size than that of `to`."""
        for split in splits:
            if split.inputs is not None and split.source.kind == "pixels" and isinstance(to, Preprocessing):
                _refuse_other_size(split.inputs, to)
        self.splits = [ViewedRows(split.source, split.view, split.seed, split.inputs) for split in splits]
        self.offsets = np.cumsum([0, *(len(split.source) for split in splits)])
        self.to = to
        self._nothing = _nothing([split.source for split in splits])
        self._memo: Memo[Example] = Memo(sum(len(s.source) * s.records.views for s in splits), RENDERED)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def kept(self) -> bool:
        """Whether rendered rows are kept, as far as the rows read so far can tell."""
        return len(self._memo) > 0

    def __getitem__(self, index: Index) -> Example:
        # rendering costs more than a step of a small student. A loader process sees too few rows twice to keep any
        return self._memo.get(index, self._rendered) if get_worker_info() is None else self._rendered(index)

    def _rendered(self, index: Index) -> Example:
        part = int(np.searchsorted(self.offsets, index[0], side="right")) - 1
        x, y = self.splits[part].labeled(index[0] - int(self.offsets[part]), index[1], self.to)
        own, partner, weight = (self._nothing, self._nothing, 1.0) if y is None else y
        return Example(index, x, np.asarray(own), np.asarray(partner), weight, known=y is not None)


def _nothing(sources: Sequence[Source]) -> Array:
    """A placeholder label for rows without one: zeros in the shape and dtype of the others."""
    labels = next((source.labels for source in sources if source.labels is not None), np.zeros(1, np.int64))
    return np.zeros_like(labels[0])


def _refuse_other_size(inputs: StoredInputs, to: Preprocessing) -> None:
    channels, *size = inputs.shape
    wanted = max(len(to.mean), len(to.std))
    if tuple(size) != to.size or wanted not in (1, channels):
        raise EdistillError(
            f"The cache stores inputs of size {size} and {channels} channels, moved along the members' gradients, and "
            f"the student takes {list(to.size)} and {wanted}. Leave size, mean and std out of student.preprocessing, "
            "or take ods or confods out of views.transform."
        )


class TeacherOutputs:
    """The members' outputs at indices of `CachedRows`, read in the main process, a batch at a time."""

    def __init__(self, splits: Sequence[CachedSplit]) -> None:
        self.records = [split.records for split in splits]
        self.offsets = np.cumsum([0, *(len(records) for records in self.records)])

    @property
    def partial(self) -> bool:
        """Whether some member leaves some row unanswered."""
        return any(records.partial for records in self.records)

    def answered(self) -> NDArray[np.bool_]:
        """Whether each member answers each row, (N, M)."""
        return np.concatenate([records.answered() for records in self.records])

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """Outputs (B, M, *shape) in float32."""
        if len(self.records) == 1:
            return torch.from_numpy(self.records[0].read(indices[:, 0], indices[:, 1]))
        parts = np.searchsorted(self.offsets, indices[:, 0], side="right") - 1
        first = self.records[0]
        outputs = np.empty((len(indices), len(first.members), *first.shape), np.float32)
        for part, records in enumerate(self.records):
            here = np.flatnonzero(parts == part)
            outputs[here] = records.read(indices[here, 0] - self.offsets[part], indices[here, 1])
        return torch.from_numpy(outputs)


def collate(examples: Sequence[Example]) -> Rows:
    return Rows(
        indices=np.array([example.index for example in examples], np.int64),
        x=torch.from_numpy(np.stack([example.x for example in examples])),
        own=torch.from_numpy(np.stack([example.own for example in examples])),
        partner=torch.from_numpy(np.stack([example.partner for example in examples])),
        weight=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        known=torch.tensor([example.known for example in examples]),
    )
