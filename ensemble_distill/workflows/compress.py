"""Thinning the members that a student's bodies start from, on rows as training will show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.students.compression import compress
from ensemble_distill.students.factored import Ranks, factor, is_factorable
from ensemble_distill.students.run import CONFIG, StudentConfig
from ensemble_distill.training.checkpoint import NAME as CHECKPOINT
from ensemble_distill.training.order import Every, Order
from ensemble_distill.training.rows import CachedRows, collate

NUMBERS = 2**22  # of all inputs together, about
FEWEST, MOST = 512, 2**13  # rows


@dataclass(frozen=True)
class Thinning:
    """Thins bodies on a sample of the training rows and views, the same for each seed.

    Attributes:
        known: the ranks of an interrupted training, whose checkpoint brings the weights; None to choose and solve.
    """

    rows: CachedRows
    order: Order
    device: torch.device
    progress: Progress
    known: tuple[Mapping[str, Ranks], ...] | None = None

    def __call__(
        self, bodies: Sequence[nn.Module], names: Sequence[str], share: float
    ) -> tuple[Mapping[str, Ranks], ...]:
        """Thin each body, which is the member of that name, in place; the ranks of each."""
        if self.known is not None:
            for body, ranks in zip(bodies, self.known, strict=True):
                factor(body, ranks)
            return self.known
        wanted = min(max(NUMBERS // self.rows[0, 0].x.size, FEWEST), MOST)
        every = Every(self.order, wanted)
        sample = [rows.x.to(self.device) for rows in batches(self.rows, every, collate, 0, self.device)]
        layers = sum(is_factorable(module) for body in bodies for module in body.modules())
        self.progress.start("compressing the members", layers, "layers")
        found = []
        for body, name in zip(bodies, names, strict=True):
            body.to(self.device).eval()
            found.append(compress(body, share, sample, name, self.progress.advance))
            body.cpu()
        self.progress.finish()
        return tuple(found)


def interrupted(folder: Path) -> tuple[Mapping[str, Ranks], ...] | None:
    """The ranks of a training that has a checkpoint; None where there is none, or nothing was compressed."""
    if not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
        return None
    return StudentConfig.load(folder).compressed or None
