"""What a student starts from, bodies or the last stages of its heads, compressed on rows as training will show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ensemble_distill.config import LastStageSettings, StudentSettings
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.students.bodies import each
from ensemble_distill.students.compression.compress import Compression, Shown, compress, compress_alike
from ensemble_distill.students.compression.factored import channels, factor, is_factorable, positions
from ensemble_distill.students.compression.ranks import Share
from ensemble_distill.students.from_members import FromMembers
from ensemble_distill.students.last_stage import LastStageHeads
from ensemble_distill.students.per_head import per_head
from ensemble_distill.students.run import CONFIG, StudentConfig
from ensemble_distill.students.student import Student
from ensemble_distill.training.checkpoint import NAME as CHECKPOINT
from ensemble_distill.training.order import Every, Order
from ensemble_distill.training.rows import CachedRows, collate

NUMBERS = 2**22  # of all inputs together, about
FEWEST, MOST = 512, 2**13  # rows
PER_INPUT = 4  # rows for each input of a layer that sees one position, which may be a row's only one
BATCH = 128  # of them, at most
HELD_OUT = 9  # of that many batches one


def compress_start(
    settings: StudentSettings,
    config: StudentConfig,
    student: Student,
    start: FromMembers | None,
    names: Sequence[str],
    sampling: Sampling,
    progress: Progress,
    interrupted: StudentConfig | None,
) -> StudentConfig:
    """Compress the bodies of a one-headed student, or the last stages that its heads start from; the configuration of
    what they become.

    They are solved for from a sample of the training rows and views, the same for each seed. How much they keep is
    noted.

    Args:
        student, start: changed in place; they come and leave on the CPU.
        names: of the members that the bodies are.
        interrupted: of a training whose checkpoint brings the weights. With the ranks it has the factors are fresh.

    Raises:
        EdistillError: see `compress`; or the interrupted training has the ranks of other bodies.
    """
    with torch.random.fork_rng(devices=[]):  # what follows starts from the same random numbers either way
        if settings.compress is not None:
            bodies = [Shown(name, body) for name, body in zip(names, each(student.body), strict=True)]
            known = () if interrupted is None else _known(interrupted, len(bodies))
            if known:
                for shown, ranks in zip(bodies, known, strict=True):
                    factor(shown.body, ranks)
            else:
                known = _compressed_bodies(bodies, Share(settings.compress), sampling, progress)
            return replace(config, compressed=known)

        heads, stage = settings.heads, config.last_stage
        assert isinstance(heads, LastStageSettings)
        assert heads.compress is not None
        assert isinstance(student.heads, LastStageHeads)
        assert stage is not None
        assert start is not None
        if interrupted is not None and interrupted.last_stage is not None:
            same = interrupted.last_stage.compressed
            for member in start.members:
                factor(member.tail, same)
        else:
            stages = [
                Shown(member.name, split.tail, nn.Sequential(split.trunk, split.bridge))
                for member, split in zip(config.members, start.members, strict=True)
            ]
            wanted = Share(heads.compress, "student.heads.compress", "last stage", "give the adapters a lower rank")
            same = _compressed_stages(stages, wanted, sampling, progress)
        student.heads.tail = per_head(start.members[0].tail, 1)
        return replace(config, last_stage=replace(stage, compressed=same))


@dataclass(frozen=True)
class Sampling:
    """Where a training's rows come from, and the device that they are looked at on."""

    rows: CachedRows
    order: Order
    device: torch.device

    def take(self, layers: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
        """Batches to solve such layers from, and others to measure on."""
        wanted = _rows(self.rows[0, 0].x.size, layers)
        batch_size = min(BATCH, max(1, len(Every(self.order, wanted).rows) // HELD_OUT))
        every = Every(replace(self.order, batch_size=batch_size), wanted)
        sample = [some.x.to(self.device) for some in batches(self.rows, every, collate, 0, self.device)]
        per_view = len(sample) // every.epochs  # batches; those of each view are of the same rows
        held_out = [some for index, some in enumerate(sample) if index % per_view % HELD_OUT == 0]
        return [some for index, some in enumerate(sample) if index % per_view % HELD_OUT] or sample, held_out


def interrupted_config(folder: Path) -> StudentConfig | None:
    """The configuration of a training that goes on from a checkpoint; None where there is no such."""
    if not (folder / CHECKPOINT).is_file() or not (folder / CONFIG).is_file():
        return None
    return StudentConfig.load(folder)


def _known(interrupted: StudentConfig, bodies: int) -> tuple[Mapping[str, int], ...]:
    found = interrupted.compressed
    if len(found) not in (0, bodies):
        raise EdistillError(
            f"{CONFIG} is damaged: it has the ranks of {len(found)} bodies, and {bodies} are trained. Start over with "
            "--overwrite."
        )
    return found


def _compressed_bodies(
    bodies: Sequence[Shown], share: Share, sampling: Sampling, progress: Progress
) -> tuple[Mapping[str, int], ...]:
    layers = _factorable(bodies)
    solved_from, held_out = sampling.take(layers)
    progress.start("compressing the members", len(layers), "layers")
    found = []
    for shown in bodies:
        shown.body.to(sampling.device).eval()
        found.append(compress(shown.body, share, solved_from, held_out, shown.name, progress.advance))
        shown.body.cpu()
    progress.finish()
    _note(found, "a body", progress)
    return tuple(one.ranks for one in found)


def _compressed_stages(
    stages: Sequence[Shown], share: Share, sampling: Sampling, progress: Progress
) -> Mapping[str, int]:
    """To the same ranks in all, from what their own members give them: adapters to that are solved for later."""
    layers = _factorable(stages)
    solved_from, held_out = sampling.take(layers)
    progress.start("compressing the last stages", len(layers), "layers")
    parts = [part for shown in stages for part in (shown.before, shown.body) if part is not None]
    for part in parts:
        part.to(sampling.device).eval()
    found = compress_alike(stages, share, solved_from, held_out, progress.advance)
    for part in parts:
        part.cpu()
    progress.finish()
    _note(found, "a last stage", progress)
    return found[0].ranks


def _factorable(networks: Sequence[Shown]) -> list[nn.Module]:
    return [module for shown in networks for module in shown.body.modules() if is_factorable(module)]


def _rows(size: int, layers: Sequence[nn.Module]) -> int:
    """How many rows of so many numbers to solve from."""
    widest = max((channels(layer)[0] for layer in layers if is_factorable(layer) and positions(layer) == 1), default=0)
    return min(max(NUMBERS // size, FEWEST, PER_INPUT * widest) * HELD_OUT // (HELD_OUT - 1), MOST)


def _note(found: Sequence[Compression], what: str, progress: Progress) -> None:
    parameters, kept = _told([one.share for one in found]), [one.kept for one in found if not math.isnan(one.kept)]
    of = f"{_told(kept)} of its features' variance" if kept else "what could not be measured on so few rows"
    progress.note(f"With {parameters} of its parameters {what} keeps {of}.")


def _told(shares: Sequence[float]) -> str:
    least, most = (f"{100 * of(shares):.3g}" for of in (min, max))
    return f"{least} %" if least == most else f"{least} to {most} %"
