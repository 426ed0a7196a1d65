"""The default number of loader processes that bring the rows of a pass."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.caching.complete import keys
from ensemble_distill.caching.forecast import seconds_a_row
from ensemble_distill.caching.panel import Asking, wanted
from ensemble_distill.caching.seen import loaded
from ensemble_distill.data.plan import SplitPlan
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.workers import at_once, by_trial, offered, rate_of
from ensemble_distill.teachers.answering import Answering


def with_workers(
    asking: Asking, manifest: Manifest, splits: Mapping[str, SplitPlan], members: Sequence[Answering]
) -> Asking:
    """Set the number of loader processes to what a trial on the largest split finds faster.

    Unchanged if the settings give the number, if the device is not a CPU, or if no member takes inputs.

    Args:
        members: opened, on their device.
    """
    wants = wanted(members)
    if not asking.tries_workers or asking.device.type != "cpu" or not wants:
        return asking
    lacking = {key.split for key in keys(splits, manifest.members) if key not in manifest.records}
    if not lacking:
        return asking
    name = max(lacking, key=lambda one: len(splits[one].source) * splits[one].count)
    try:
        rendering, computing = seconds_a_row(name, splits[name], members, asking.device)
        rows = len(splits[name].source) * splits[name].count // ranks.current().world
        size = at_once(rendering, computing, asking.batch_size)
        trial = partial(_trial, name, splits[name], members, asking, size)
        chosen = by_trial("caching", offered(rendering, computing, rows), lambda n: rate_of(trial(n)), asking.progress)
    except EdistillError:  # a row cannot be read: the pass raises this error when it gets there
        return asking
    return replace(asking, workers=chosen)


def _trial(
    name: str, plan: SplitPlan, members: Sequence[Answering], asking: Asking, size: int, workers: int
) -> Generator[int]:
    """Render batches and ask members about them, yielding the rows of each batch; nothing is kept."""
    total, last = len(plan.source), plan.count - 1
    cut = [range(start, min(start + size, total)) for start in range(0, total, size)]
    stream = loaded(plan.rows(), cut, [last], wanted(members), workers, asking.device)
    for batch, shown in zip(cut, stream, strict=True):
        for member in members:
            x = shown.get((last, member.wants)) if member.wants is not None else None
            member.answers(name, list(batch), None if x is None else x.to(asking.device))
        yield len(batch)
