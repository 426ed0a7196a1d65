"""Compressing what a student starts from before its training. A resumed training keeps the ranks it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.folder import CHECKPOINT, CONFIG
from ensemble_distill.runtime import ranks
from ensemble_distill.settings import LastStageSettings
from ensemble_distill.starts.compressing import Compressing
from ensemble_distill.students.architecture import Architecture
from ensemble_distill.students.bodies import each
from ensemble_distill.students.factored import factor
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.students.per_head import per_head
from ensemble_distill.training.asked import Asked
from ensemble_distill.training.student import Begun


def compressed(asked: Asked, begun: Begun, compressing: Compressing) -> Begun:
    """Compress, in place, the bodies or the last stages of the heads that the training starts from.

    Raises:
        EdistillError: see `compress`; or the interrupted training has no ranks for this student.
    """
    made: list[Begun] = []  # filled by the first process; the others receive its weights with the student's

    def first() -> Architecture:
        made.append(_compressed(asked, begun, compressing, None if asked.overwrite else _interrupted(asked.folder)))
        return made[0].architecture

    architecture = ranks.of_first(first)
    return made[0] if made else _compressed(asked, begun, compressing, architecture)


def _compressed(asked: Asked, begun: Begun, compressing: Compressing, interrupted: Architecture | None) -> Begun:
    """Compress `begun`, or give it fresh factors of the ranks of an interrupted training."""
    with torch.random.fork_rng(devices=[]):  # a fresh and a resumed training go on with the same random numbers
        if asked.student.compress is not None:
            bodies = dict(zip(begun.names, each(begun.student.body), strict=True))
            if interrupted is None:
                kept = compressing.bodies(bodies, asked.student.compress)
            else:
                kept = _factored(bodies, interrupted, asked.folder)
            return replace(begun, architecture=replace(begun.architecture, compressed=kept))
        return _last_stages(asked, begun, compressing, interrupted)


def _last_stages(asked: Asked, begun: Begun, compressing: Compressing, interrupted: Architecture | None) -> Begun:
    settings, stage, start, heads = asked.student.heads, begun.architecture.last_stage, begun.start, begun.student.heads
    assert isinstance(settings, LastStageSettings)
    assert settings.compress is not None
    assert isinstance(heads, LastStageHeads)
    assert stage is not None
    assert start is not None
    whole = start.members[0].tail
    if interrupted is None:
        stage = replace(stage, compressed=compressing.last_stages(start, settings.compress))
    elif interrupted.last_stage is None or not interrupted.last_stage.compressed:
        raise _damaged(asked.folder, "no ranks of the last stages that are trained")
    else:
        stage = replace(stage, compressed=interrupted.last_stage.compressed)
    heads.tail = per_head(stage.with_factors(whole), 1)
    return replace(begun, architecture=replace(begun.architecture, last_stage=stage))


def _factored(
    bodies: Mapping[str, nn.Module], interrupted: Architecture, folder: Path
) -> tuple[Mapping[str, int], ...]:
    """Give the bodies fresh factors of the ranks that the training began with, and return these ranks."""
    ranks = interrupted.compressed
    if len(ranks) != len(bodies):
        raise _damaged(folder, f"the ranks of {len(ranks)} bodies, and {len(bodies)} are trained")
    for body, own in zip(bodies.values(), ranks, strict=True):
        factor(body, own)
    return ranks


def _interrupted(folder: Path) -> Architecture | None:
    """The architecture of the training interrupted in `folder`, if a checkpoint there has its weights."""
    if not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
        return None
    return StudentConfig.load(folder).architecture


def _damaged(folder: Path, told: str) -> EdistillError:
    return EdistillError(f"{folder / CONFIG} is damaged: it has {told}. Start over with --overwrite.")
