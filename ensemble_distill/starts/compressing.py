"""Compressing bodies, or the last stages of heads, on rows as training will show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ensemble_distill.runtime.progress import Progress
from ensemble_distill.starts.compress import Compression, Piece, compress
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.starts.ranks import Budget
from ensemble_distill.students.factored import Layer, channels, is_factorable, positions

NUMBERS = 2**22  # target for the numbers in all inputs together
LARGEST = 2**29  # maximum for these numbers, unless `FEWEST` rows need more
FEWEST, MOST = 512, 2**13  # rows
PER_INPUT = 4  # rows per input of a layer with a kernel of one position, since a row may give it only one position
BATCH = 128  # maximum rows per batch
HELD_OUT = 9  # one in this many batches is held out


# (maximum rows, minimum batches per view, maximum rows per batch) to the batches (B, …) of each view
Sample = Callable[[int, int, int], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class Compressing:
    """Compresses members on a sample of training rows and views, and reports how much they keep.

    Attributes:
        sample: gives rows in views as training will show them, the same for each seed.
        shape: of one row, as the student sees it.
        device: where layers are solved for.
    """

    sample: Sample
    shape: tuple[int, ...]
    device: torch.device
    progress: Progress

    def bodies(self, bodies: Mapping[str, nn.Module], share: float) -> tuple[Mapping[str, int], ...]:
        """Compress the bodies of these members in place, each with ranks of its own. Returns the ranks of each.

        Raises:
            EdistillError: see `compress`.
        """
        pieces = [[Piece(name, body.eval())] for name, body in bodies.items()]
        return tuple(one.ranks for one in self._compress(pieces, Budget(share, "student.compress", "body")))

    def last_stages(self, start: FromMembers, share: float) -> Mapping[str, int]:
        """Compress the last stages that heads start from, all to the same ranks. Returns these ranks.

        They are solved for from their own members' features, since the adapters' outputs are not known yet.

        Raises:
            EdistillError: see `compress`.
        """
        pieces = [Piece(name, *parts) for name, parts in zip(start.names, start.last_stages(), strict=True)]
        found = self._compress([pieces], Budget(share, "student.heads.compress", "last stage"))
        start.take_last_stages([piece.network for piece in pieces])
        return found[0].ranks

    def _compress(self, groups: Sequence[Sequence[Piece]], budget: Budget) -> list[Compression]:
        """Compress groups of pieces; the pieces of a group get the same ranks."""
        pieces = [piece for group in groups for piece in group]
        layers = [module for piece in pieces for module in piece.network.modules() if is_factorable(module)]
        found = []
        solved_from, held_out = self._sampled(pieces[0], layers)
        self.progress.start(f"compressing {len(pieces)} members ({budget.part})", len(layers), "layers")
        for group in groups:
            found += compress(group, budget, solved_from, held_out, self.device, self.progress.advance)
        self.progress.finish()
        parameters, kept = _told([one.share for one in found]), [one.kept for one in found if not math.isnan(one.kept)]
        of = f"{_told(kept)} of its features' variance" if kept else "what could not be measured on so few rows"
        self.progress.note(f"With {parameters} of its parameters a {budget.part} keeps {of}.")
        return found

    def _sampled(self, piece: Piece, layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor]]:
        """Batches to solve layers from, and held-out batches to measure on; a held-out row is held out in all views."""
        two = torch.zeros(2, *self.shape)
        wanted = _rows(max(two[0].numel(), piece.given([two])[0][0].numel()), layers)
        views = [list(enumerate(view)) for view in self.sample(wanted, HELD_OUT, BATCH)]
        held_out = [some for view in views for index, some in view if index % HELD_OUT == 0]
        return [some for view in views for index, some in view if index % HELD_OUT] or held_out, held_out


def _rows(size: int, layers: Sequence[Layer]) -> int:
    """How many rows of `size` numbers to solve these layers from, held-out rows included."""
    widest = max((channels(layer)[0] for layer in layers if positions(layer) == 1), default=0)
    wanted = min(max(NUMBERS // size, FEWEST, PER_INPUT * widest), max(FEWEST, LARGEST // size))
    return min(wanted * HELD_OUT // (HELD_OUT - 1), MOST)


def _told(shares: Sequence[float]) -> str:
    least, most = (f"{100 * of(shares):.3g}" for of in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"
