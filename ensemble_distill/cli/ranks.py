"""A command in several processes of torchrun: the first one reports, and a failure is reported by the process that
failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ensemble_distill.cli import interrupts, render
from ensemble_distill.runtime import job, ranks


@contextmanager
def together(shared: bool) -> Iterator[bool]:
    """Yield whether this process runs the command.

    Args:
        shared: whether all processes take part; otherwise the first one runs the command, and the others wait.
    """
    rank = ranks.current()
    if rank.world == 1:
        yield True
        return
    ended: typer.Exit | typer.Abort | None = None
    try:
        with render.silenced(rank.index != 0) as tell, job.opened(tell=tell):
            try:
                yield shared or rank.index == 0
            except (typer.Exit, typer.Abort) as end:  # the command has ended normally
                ended = end
    except job.EndedError as end:
        interrupted = isinstance(end.__cause__, KeyboardInterrupt)
        raise typer.Exit(interrupts.status() if interrupted else job.STATUS) from None
    if ended is not None:
        raise ended
