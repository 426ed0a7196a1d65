"""What the members of an ensemble say of rows: read from the cache where it holds them, else asked now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import Manifest, refuse_other_data
from ensemble_distill.cache.reader import Cache, Records
from ensemble_distill.data.rows import plain_inputs
from ensemble_distill.data.source import Source
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation.subensembles import Members
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.folder import ARGS
from ensemble_distill.runs.run import Run
from ensemble_distill.runtime.devices import loader_workers, resolve
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import Settings
from ensemble_distill.teachers.answering import Answering
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.teachers.trial import Few, tried
from ensemble_distill.training.plain_rows import BATCH, plain_batches
from ensemble_distill.workspace.splits import open_ensemble, plan_split, trusted_by

# what a run recorded of its members that the settings may say otherwise, and by which key of [teachers]
FACTS = {"output": "output", "preprocessing": "preprocessing", "units": "standardized", "variance": "variance"}


class Answers:
    """The members that a run was trained from.

    Args:
        run: what it says of its members must still hold of those in the teachers' folder.
        trust: load pickled checkpoints that name arbitrary globals.
    """

    def __init__(self, settings: Settings, run: Run, trust: bool, progress: Progress) -> None:
        self.settings, self.run, self.trusted = settings, run, trusted_by(settings, trust)
        self.progress = progress
        self.members = run.provenance.members
        self.device = resolve(settings.train.device)
        self.workers = loader_workers(settings.train.workers, self.device)
        folder = Path(settings.output.cache)
        self._cache = Cache(folder) if (folder / MANIFEST).is_file() else None
        self.family = run.architecture.task.members_family()
        weights = run.architecture.pooling()
        self._tried: list[Answering] | None = None
        self._weights = None if weights is None else weights.double()

    def predictive(self, outputs: Tensor, some: Sequence[int] | None = None) -> Members:
        """The ensemble's prediction from all members' outputs (B, M, W), or that of the members at some positions."""
        at = list(range(len(self.members)) if some is None else some)
        weights = None if self._weights is None else self._weights[at]
        return cast(Members, self.family.predictive(outputs[:, at], weights, self.run.architecture.average))

    @property
    def pooled(self) -> tuple[int, ...]:
        """The positions of the members that are part of the ensemble: those of a weight above 0."""
        weights = [1.0] * len(self.members) if self._weights is None else self._weights.tolist()
        return tuple(at for at, weight in enumerate(weights) if weight > 0)

    def of(self, split: str, source: Source) -> Iterator[Tensor]:
        """Every member's outputs (B, M, W) on a configured split, batch by batch as `plain_batches` cuts them."""
        records = self._records(split, source)
        if records is None:
            yield from self.asked(source, split)
        else:
            at = [records.members.index(member.name) for member in self.members]
            for start in range(0, len(source), BATCH):
                outputs = records.read(range(start, min(start + BATCH, len(source))))[:, at]
                yield torch.from_numpy(outputs).double()

    def asked(self, source: Source, named: str) -> Iterator[Tensor]:
        """Every member's outputs (B, M, W) on any rows, asked now. Equal preprocessing is rendered once."""
        different = list(dict.fromkeys(member.preprocessing for member in self.members))
        streams = [plain_batches(source, to, self.workers, self.device) for to in different]
        for batches in zip(*streams, strict=True):
            on_device = [x.to(self.device) for _, x in batches]
            rows = batches[0][0]
            inputs = [on_device[different.index(member.preprocessing)] for member in self.members]
            outputs = []
            for member, x in zip(self._asked(inputs, named, rows), inputs, strict=True):
                outputs.append(member.answers(named, rows, x))
            yield torch.from_numpy(np.stack(outputs, axis=1)).double()

    def _asked(self, inputs: Sequence[Tensor], named: str, rows: Sequence[int]) -> list[Answering]:
        """The members, which before their first batch are tried on some of its rows."""
        for asked in self._opened:
            asked.to(self.device)
        if self._tried is None:
            some, self._tried = some_rows(len(rows)), []
            count = len(self.run.architecture.task.names) or None
            for asked, x in zip(self._opened, inputs, strict=True):
                picked, told = tried(asked, Few(named, [rows[at] for at in some], x[some]), count)
                self._tried.append(picked)
                if told is not None:
                    self.progress.note(told)
        return self._tried

    @property
    def at_hand(self) -> bool:
        """Whether the members can be asked: a run is evaluated from its cache alone, too."""
        return Path(self.settings.teachers.path).exists()

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The members themselves, from the teachers' folder. Raises EdistillError when they are not all there."""
        return [asked.module for asked in self._opened if asked.module is not None]

    @cached_property
    def _opened(self) -> list[Answering]:
        return [teacher.open(type(self.run.architecture.task)) for teacher in self._teachers]

    @cached_property
    def _teachers(self) -> list[Teacher]:
        folder = self.run.folder
        teachers = open_ensemble(self.settings, self.run.architecture.task.data_names, self.trusted)
        found = {teacher.member.sha256: teacher for teacher in teachers}
        for member in self.members:
            if member.sha256 not in found:
                raise EdistillError(
                    f"{folder} was trained from member {member.name} ({member.sha256[:12]}…), which is not "
                    f"among the teachers in {self.settings.teachers.path}. Put it back."
                )
            for what, key in FACTS.items():
                if what == "preprocessing" and self.run.architecture.kind != "pixels":
                    continue  # it acts on nothing else
                there, here = getattr(member, what), getattr(found[member.sha256].member, what)
                if there != here and not (what == "preprocessing" and here is not None and here.is_what(there)):
                    raise EdistillError(
                        f"{folder} was trained from member {member.name} with {what} {there}, but now it is "
                        f"{here}. Set teachers.{key} back."
                    )
        return [replace(found[member.sha256], member=member) for member in self.members]

    def _records(self, split: str, source: Source) -> Records | None:
        """The cached outputs of a split, when the cache has it plain and for this run's members."""
        if self._cache is None or self._cache.manifest.views(split) == 0:
            return None
        manifest = self._cache.manifest
        cached = manifest.splits[split]
        here = {member.name: member for member in manifest.members}
        if cached.transform != "none" or any(here.get(m.name) != m for m in self.members):
            return None
        refuse_other_data(self._cache.folder, split, cached, plan_split(self.settings, split, source).facts())
        return self._cache.open(split)


def beside_its_teachers(settings: Settings, run: Run, trust: bool, progress: Progress) -> Settings:
    """The settings; or, where neither the cache nor the teachers that they name hold the members that a run learned
    from, with those that the run's own settings name, if they do. A run is compared with what it learned from."""
    if not (run.folder / ARGS).is_file() or _hold(settings, run, trust):
        return settings
    if not trusted_by(settings, trust).covers(run.folder):  # its settings name code too: what builds the members
        return settings
    own = read_args(run.folder)
    if not _hold(own, run, trust):
        return settings
    progress.note(f"{run.folder} learned from {own.teachers.path}, and is compared with that.")
    output = settings.output.model_copy(update={"cache": own.output.cache})
    return settings.model_copy(update={"teachers": own.teachers, "output": output})


def _hold(settings: Settings, run: Run, trust: bool) -> bool:
    """Whether the cache that settings name, or else their teachers, are of all the members of a run."""
    wanted = {member.sha256 for member in run.provenance.members}
    cache = Path(settings.output.cache)
    if (cache / MANIFEST).is_file() and wanted <= {member.sha256 for member in Manifest.load(cache).members}:
        return True
    try:
        teachers = open_ensemble(settings, run.architecture.task.data_names, trust)
    except EdistillError:
        return False
    return wanted <= {teacher.member.sha256 for teacher in teachers}


def first_input(source: Source, to: Preprocessing | None) -> Tensor:
    """The input (1, ...) that row 0 becomes."""
    return torch.from_numpy(plain_inputs(source, [0], to))
