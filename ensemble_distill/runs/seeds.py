"""Runs that differ in their seed alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ensemble_distill.runs.args import differing, read_args
from ensemble_distill.runs.run import Run
from ensemble_distill.settings import Settings

OF_A_SEED = ("train.seed",)
_SEEDED = re.compile(r"-s\d+$")  # as `train` names runs


def by_seed(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The positions of runs that were made alike but for their seed, by a name for them, in the order of the first.

    Runs of one seed twice are no seeds of one student: each stands for itself. So does a run that is calibrated beside
    one that is not: its figures are of something else. And so does an exported file, which does not say its seed.
    """
    settings = {at: read_args(run.folder) for at, run in enumerate(runs) if run.keeps}
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
    """Whether the run at a position is of another seed than those of a group, and else made as they are."""
    first = group[0]
    if first not in settings or at not in settings or (runs[first].calibrated is None) != (runs[at].calibrated is None):
        return False
    taken = {settings[other].train.seed for other in group}
    return settings[at].train.seed not in taken and not differing(settings[first], settings[at], OF_A_SEED)


def _name(names: Sequence[str]) -> str:
    """What several runs are called together: hydra-s0 and hydra-s1 are hydra."""
    bare = {_SEEDED.sub("", name) for name in names}
    return bare.pop() if len(names) > 1 and len(bare) == 1 else names[0] if len(names) == 1 else " + ".join(names)
