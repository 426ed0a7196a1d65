"""Runs that differ in their seed alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ensemble_distill.runs.args import differing, read_args
from ensemble_distill.runs.run import Run

OF_A_SEED = ("train.seed",)
_SEEDED = re.compile(r"-s\d+$")  # as `train` names runs


def by_seed(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The positions of runs that were made alike but for their seed, by a name for them, in the order of the first.

    Runs of one seed twice are no seeds of one student: each stands for itself. So does a run that is calibrated beside
    one that is not: its figures are of something else.
    """
    settings = [read_args(run.folder) for run in runs]
    groups: list[list[int]] = []
    for at, own in enumerate(settings):
        alike = [
            group
            for group in groups
            if (runs[group[0]].calibrated is None) == (runs[at].calibrated is None)
            and not differing(settings[group[0]], own, OF_A_SEED)
        ]
        fits = [group for group in alike if own.train.seed not in {settings[other].train.seed for other in group}]
        if fits:
            fits[0].append(at)
        else:
            groups.append([at])
    names = [_name([runs[at].folder.name for at in group]) for group in groups]
    whole = [" + ".join(str(runs[at].folder) for at in group) for group in groups]
    return {
        name if names.count(name) == 1 else long: group for name, long, group in zip(names, whole, groups, strict=True)
    }


def _name(names: Sequence[str]) -> str:
    """What several runs are called together: hydra-s0 and hydra-s1 are hydra."""
    bare = {_SEEDED.sub("", name) for name in names}
    return bare.pop() if len(names) > 1 and len(bare) == 1 else names[0] if len(names) == 1 else " + ".join(names)
