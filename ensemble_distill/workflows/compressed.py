"""The bodies that a student starts from, compressed on rows as training will show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def compress_bodies(
    bodies: Sequence[nn.Module],
    names: Sequence[str],
    share: float,
    rows: CachedRows,
    order: Order,
    device: torch.device,
    progress: Progress,
    known: Sequence[Mapping[str, Ranks]] = (),
) -> tuple[Mapping[str, Ranks], ...]:
    """Compress bodies on the CPU, which are the members of those names, in place; the ranks of each, see `compress`.

    They are solved for from a sample of the training rows and views, the same for each seed and on each process. How
    much they keep is noted.

    Args:
        share: of its parameters that each body keeps.
        known: ranks that were found before, where a checkpoint brings the weights: the factors are fresh.
    """
    with torch.random.fork_rng(devices=[]):  # what follows starts from the same random numbers either way
        if known:
            for body, ranks in zip(bodies, known, strict=True):
                factor(body, ranks)
            return tuple(known)
        every = Every(order, min(max(NUMBERS // rows[0, 0].x.size, FEWEST), MOST))
        sample = [some.x.to(device) for some in batches(rows, every, collate, 0, device)]
        layers = sum(is_factorable(module) for body in bodies for module in body.modules())
        progress.start("compressing the members", layers, "layers")
        found = []
        for body, name in zip(bodies, names, strict=True):
            body.to(device).eval()
            found.append(compress(body, share, sample, name, progress.advance))
            body.cpu()
        progress.finish()
    least, most = (f"{100 * of(one.kept for one in found):.3g}" for of in (min, max))
    progress.note(
        f"With {100 * share:g} % of their parameters the bodies keep {least} to {most} % of their features' variance."
        if least != most
        else f"With {100 * share:g} % of its parameters a body keeps {most} % of its features' variance."
    )
    return tuple(one.ranks for one in found)


def known_ranks(folder: Path) -> tuple[Mapping[str, Ranks], ...]:
    """The ranks of an interrupted training, whose checkpoint brings the weights; none where there is no such."""
    if not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
        return ()
    return StudentConfig.load(folder).compressed
