"""Runs that differ only in their seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ensemble_distill.runs.args import differing, read_args
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import Settings

OF_A_SEED = ("train.seed",)
_SEEDED = re.compile(r"-s\d+$")  # the suffix that `train` gives runs


def by_seed(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The positions of runs that differ only in their seed, under a common name, in the order of each group's first
    run.

    Two runs with the same seed are not two seeds of one student, so the second starts a group of its own. A calibrated
    run is not grouped with an uncalibrated one, since their figures describe different predictions. An exported file
    and a run without its settings do not record their seed, and stay alone.
    """
    recorded = (at for at, run in enumerate(runs) if run.keeps and (run.folder / ARGS).is_file())
    settings = {at: read_args(runs[at].folder) for at in recorded}
    groups: list[list[int]] = []
    for at in range(len(runs)):
        fits = next((group for group in groups if _is_another_seed(runs, settings, group, at)), None)
        if fits is None:
            groups.append([at])
        else:
            fits.append(at)
    names = [_name([runs[at].folder.name for at in group]) for group in groups]
    whole = [" + ".join(str(runs[at].folder) for at in group) for group in groups]
    return {
        name if names.count(name) == 1 else long: group for name, long, group in zip(names, whole, groups, strict=True)
    }


def _is_another_seed(runs: Sequence[Run], settings: Mapping[int, Settings], group: Sequence[int], at: int) -> bool:
    """Whether the run at a position equals those of a group in everything but a new seed."""
    first = group[0]
    if first not in settings or at not in settings or (runs[first].calibrated is None) != (runs[at].calibrated is None):
        return False
    taken = {settings[other].train.seed for other in group}
    return settings[at].train.seed not in taken and not differing(settings[first], settings[at], OF_A_SEED)


def _name(names: Sequence[str]) -> str:
    """A common name of several runs: hydra-s0 and hydra-s1 become hydra."""
    bare = {_SEEDED.sub("", name) for name in names}
    return bare.pop() if len(names) > 1 and len(bare) == 1 else names[0] if len(names) == 1 else " + ".join(names)
