"""What a student starts from, bodies or the last stages of its heads, compressed on rows as training will show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.folder import CHECKPOINT, CONFIG
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import LastStageSettings, StudentSettings
from ensemble_distill.starts.compress import Compression, Piece, compress
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.starts.ranks import Budget
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.bodies import each
from ensemble_distill.students.factored import Layer, channels, factor, is_factorable, positions
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.students.per_head import per_head
from ensemble_distill.students.student import Student
from ensemble_distill.training.order import Every, Order
from ensemble_distill.training.rows import CachedRows, collate

NUMBERS = 2**22  # of all inputs together, about
LARGEST = 2**29  # numbers that they may be at most, but for the fewest rows
FEWEST, MOST = 512, 2**13  # rows
PER_INPUT = 4  # rows for each input of a layer that sees one position, which may be a row's only one
BATCH = 128  # of them, at most
HELD_OUT = 9  # of that many batches one


@dataclass(frozen=True)
class Compressing:
    """What members are compressed with: a training's rows, the device they run on, and who is told.

    Members are solved for from a sample of the training rows and views, the same for each seed. How much they keep is
    noted.

    Attributes:
        interrupted: the run folder of a training whose checkpoint brings the weights, if it is one that goes on: with
            the ranks that it has the factors are fresh.
    """

    rows: CachedRows
    order: Order
    device: torch.device
    progress: Progress
    interrupted: Path | None

    def start(
        self,
        settings: StudentSettings,
        architecture: Architecture,
        members: Sequence[Member],
        student: Student,
        start: FromMembers | None,
        names: Sequence[str],
    ) -> Architecture:
        """Make thinner, in place, what a one-headed student starts from; the architecture of what it becomes.

        Args:
            members: that the student learns from.
            names: of those that its bodies are.

        Raises:
            EdistillError: see `compress`, or the interrupted training has no ranks for this student.
        """
        with torch.random.fork_rng(devices=[]):  # what follows starts from the same random numbers either way
            if settings.compress is not None:
                return replace(architecture, compressed=self._bodies(names, each(student.body), settings.compress))
            heads, stage = settings.heads, architecture.last_stage
            assert isinstance(heads, LastStageSettings)
            assert heads.compress is not None
            assert isinstance(student.heads, LastStageHeads)
            assert stage is not None
            assert start is not None
            whole = start.members[0].tail
            stage = replace(stage, compressed=self._last_stages(members, start, heads.compress))
            student.heads.tail = per_head(stage.with_factors(whole), 1)
            return replace(architecture, last_stage=stage)

    def _bodies(self, names: Sequence[str], bodies: Sequence[nn.Module], share: float) -> tuple[Mapping[str, int], ...]:
        """Each as suits it; the ranks of each."""
        before = self._interrupted()
        if before is not None:
            if len(before.compressed) != len(bodies):
                raise self._damaged(f"the ranks of {len(before.compressed)} bodies, and {len(bodies)} are trained")
            for body, ranks in zip(bodies, before.compressed, strict=True):
                factor(body, ranks)
            return before.compressed
        pieces = [[Piece(name, body.eval())] for name, body in zip(names, bodies, strict=True)]
        return tuple(one.ranks for one in self._compress(pieces, Budget(share, "student.compress", "body")))

    def _last_stages(self, members: Sequence[Member], start: FromMembers, share: float) -> Mapping[str, int]:
        """All to the same ranks; these. They are solved for from what their own members give them, since what adapters
        make of that is not yet known."""
        before = self._interrupted()
        if before is not None:
            if before.last_stage is None or not before.last_stage.compressed:
                raise self._damaged("no ranks of the last stages that are trained")
            return before.last_stage.compressed
        pieces = [Piece(member.name, *parts) for member, parts in zip(members, start.last_stages(), strict=True)]
        found = self._compress([pieces], Budget(share, "student.heads.compress", "last stage"))
        start.take_last_stages([piece.network for piece in pieces])
        return found[0].ranks

    def _interrupted(self) -> Architecture | None:
        """What is trained, where a checkpoint brings the weights."""
        folder = self.interrupted
        if folder is None or not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
            return None
        return StudentConfig.load(folder).architecture

    def _damaged(self, told: str) -> EdistillError:
        assert self.interrupted is not None
        return EdistillError(f"{self.interrupted / CONFIG} is damaged: it has {told}. Start over with --overwrite.")

    def _compress(self, groups: Sequence[Sequence[Piece]], budget: Budget) -> list[Compression]:
        """Groups of what gets the same ranks."""
        pieces = [piece for group in groups for piece in group]
        layers = [module for piece in pieces for module in piece.network.modules() if is_factorable(module)]
        found = []
        solved_from, held_out = self._sample(pieces[0], layers)
        self.progress.start(f"compressing {len(pieces)} members ({budget.part})", len(layers), "layers")
        for group in groups:
            found += compress(group, budget, solved_from, held_out, self.device, self.progress.advance)
        self.progress.finish()
        parameters, kept = _told([one.share for one in found]), [one.kept for one in found if not math.isnan(one.kept)]
        of = f"{_told(kept)} of its features' variance" if kept else "what could not be measured on so few rows"
        self.progress.note(f"With {parameters} of its parameters a {budget.part} keeps {of}.")
        return found

    def _sample(self, piece: Piece, layers: Sequence[Layer]) -> tuple[list[Tensor], list[Tensor]]:
        """Batches to solve layers from, and others to measure on."""
        two = torch.zeros(2, *self.rows[0, 0].x.shape)
        wanted = _rows(max(two[0].numel(), piece.given([two])[0][0].numel()), layers)
        batch_size = min(BATCH, max(1, len(Every(self.order, wanted).rows) // HELD_OUT))
        every = Every(replace(self.order, batch_size=batch_size), wanted)
        sample = [some.x for some in batches(self.rows, every, collate, 0, self.device)]
        per_view = len(sample) // every.epochs  # batches; those of each view are of the same rows
        held_out = [some for index, some in enumerate(sample) if index % per_view % HELD_OUT == 0]
        return [some for index, some in enumerate(sample) if index % per_view % HELD_OUT] or sample, held_out


def _rows(size: int, layers: Sequence[Layer]) -> int:
    """How many rows of so many numbers to solve such layers from."""
    widest = max((channels(layer)[0] for layer in layers if positions(layer) == 1), default=0)
    wanted = min(max(NUMBERS // size, FEWEST, PER_INPUT * widest), max(FEWEST, LARGEST // size))
    return min(wanted * HELD_OUT // (HELD_OUT - 1), MOST)


def _told(shares: Sequence[float]) -> str:
    least, most = (f"{100 * of(shares):.3g}" for of in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"
