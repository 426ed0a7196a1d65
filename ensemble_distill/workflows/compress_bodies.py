"""The bodies that a student starts from, compressed on rows as training will show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.students.compression.compress import compress
from ensemble_distill.students.compression.factored import channels, factor, is_factorable, positions
from ensemble_distill.students.run import CONFIG, StudentConfig
from ensemble_distill.training.checkpoint import NAME as CHECKPOINT
from ensemble_distill.training.order import Every, Order
from ensemble_distill.training.rows import CachedRows, collate

NUMBERS = 2**22  # of all inputs together, about
FEWEST, MOST = 512, 2**13  # rows
PER_INPUT = 4  # rows for each input of a layer that sees one position, which may be a row's only one
BATCH = 128  # of them, at most
HELD_OUT = 9  # of that many batches one


def compress_bodies(
    bodies: Sequence[nn.Module],
    names: Sequence[str],
    share: float,
    rows: CachedRows,
    order: Order,
    device: torch.device,
    progress: Progress,
    known: Sequence[Mapping[str, int]] = (),
) -> tuple[Mapping[str, int], ...]:
    """Compress bodies in place, which come and leave on the CPU; the ranks of each, see `compress`.

    They are solved for from a sample of the training rows and views, the same for each seed. How much they keep is
    noted.

    Args:
        names: of the members that they are.
        share: of its parameters that each body is to keep.
        known: ranks that were found before, where a checkpoint brings the weights: the factors are fresh.
    """
    with torch.random.fork_rng(devices=[]):  # what follows starts from the same random numbers either way
        if known:
            for body, ranks in zip(bodies, known, strict=True):
                factor(body, ranks)
            return tuple(known)
        layers = [module for body in bodies for module in body.modules() if is_factorable(module)]
        wanted = _rows(rows[0, 0].x.size, layers)
        batch_size = min(BATCH, max(1, len(Every(order, wanted).rows) // HELD_OUT))
        every = Every(replace(order, batch_size=batch_size), wanted)
        sample = [some.x.to(device) for some in batches(rows, every, collate, 0, device)]
        per_view = len(sample) // every.epochs  # batches; those of each view are of the same rows
        held_out = [some for index, some in enumerate(sample) if index % per_view % HELD_OUT == 0]
        solved_from = [some for index, some in enumerate(sample) if index % per_view % HELD_OUT] or sample
        progress.start("compressing the members", len(layers), "layers")
        found = []
        for body, name in zip(bodies, names, strict=True):
            body.to(device).eval()
            found.append(compress(body, share, solved_from, held_out, name, progress.advance))
            body.cpu()
        progress.finish()
    parameters, kept = _told([one.share for one in found]), [one.kept for one in found if not math.isnan(one.kept)]
    of = f"{_told(kept)} of its features' variance" if kept else "what could not be measured on so few rows"
    progress.note(f"With {parameters} of its parameters a body keeps {of}.")
    return tuple(one.ranks for one in found)


def _rows(size: int, layers: Sequence[nn.Module]) -> int:
    """How many rows of so many numbers to solve from."""
    widest = max((channels(layer)[0] for layer in layers if is_factorable(layer) and positions(layer) == 1), default=0)
    return min(max(NUMBERS // size, FEWEST, PER_INPUT * widest) * HELD_OUT // (HELD_OUT - 1), MOST)


def _told(shares: Sequence[float]) -> str:
    least, most = (f"{100 * of(shares):.3g}" for of in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"


def known_ranks(folder: Path, bodies: int) -> tuple[Mapping[str, int], ...]:
    """The ranks of an interrupted training, whose checkpoint brings the weights; none where there is no such.

    Raises:
        EdistillError: its record is of another number of bodies.
    """
    if not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
        return ()
    found = StudentConfig.load(folder).compressed
    if len(found) not in (0, bodies):
        raise EdistillError(
            f"{folder / CONFIG} is damaged: it has the ranks of {len(found)} bodies, and {bodies} are trained. Start "
            "over with --overwrite."
        )
    return found
