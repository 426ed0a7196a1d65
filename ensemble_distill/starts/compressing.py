"""What a student starts from, bodies or the last stages of its heads, compressed on rows as training will show them."""

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

NUMBERS = 2**22  # of all inputs together, about
LARGEST = 2**29  # numbers that they may be at most, but for the fewest rows
FEWEST, MOST = 512, 2**13  # rows
PER_INPUT = 4  # rows for each input of a layer that sees one position, which may be a row's only one
BATCH = 128  # of them, at most
HELD_OUT = 9  # of that many batches one


# inputs (B, …) of so many rows at most: of each view at least so many batches, of so many rows at most
Sample = Callable[[int, int, int], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class Compressing:
    """What members are compressed with: a sample of rows and views as training will show them, the same for each seed.

    How much they keep is noted.

    Attributes:
        shape: of one row, as the student sees it.
        device: where layers are solved for.
    """

    sample: Sample
    shape: tuple[int, ...]
    device: torch.device
    progress: Progress

    def bodies(self, bodies: Mapping[str, nn.Module], share: float) -> tuple[Mapping[str, int], ...]:
        """Make the bodies of these members thinner, in place, each as suits it; the ranks of each.

        Raises:
            EdistillError: see `compress`.
        """
        pieces = [[Piece(name, body.eval())] for name, body in bodies.items()]
        return tuple(one.ranks for one in self._compress(pieces, Budget(share, "student.compress", "body")))

    def last_stages(self, start: FromMembers, share: float) -> Mapping[str, int]:
        """Make what heads start from thinner, all last stages to the same ranks; these.

        They are solved for from what their own members give them, since what adapters make of that is not yet known.

        Raises:
            EdistillError: see `compress`.
        """
        pieces = [Piece(name, *parts) for name, parts in zip(start.names, start.last_stages(), strict=True)]
        found = self._compress([pieces], Budget(share, "student.heads.compress", "last stage"))
        start.take_last_stages([piece.network for piece in pieces])
        return found[0].ranks

    def _compress(self, groups: Sequence[Sequence[Piece]], budget: Budget) -> list[Compression]:
        """Groups of what gets the same ranks."""
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
        """Batches to solve layers from, and others to measure on; those of each view are of the same rows."""
        two = torch.zeros(2, *self.shape)
        wanted = _rows(max(two[0].numel(), piece.given([two])[0][0].numel()), layers)
        views = [list(enumerate(view)) for view in self.sample(wanted, HELD_OUT, BATCH)]
        held_out = [some for view in views for index, some in view if index % HELD_OUT == 0]
        return [some for view in views for index, some in view if index % HELD_OUT] or held_out, held_out


def _rows(size: int, layers: Sequence[Layer]) -> int:
    """How many rows of so many numbers to solve such layers from."""
    widest = max((channels(layer)[0] for layer in layers if positions(layer) == 1), default=0)
    wanted = min(max(NUMBERS // size, FEWEST, PER_INPUT * widest), max(FEWEST, LARGEST // size))
    return min(wanted * HELD_OUT // (HELD_OUT - 1), MOST)


def _told(shares: Sequence[float]) -> str:
    least, most = (f"{100 * of(shares):.3g}" for of in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"
