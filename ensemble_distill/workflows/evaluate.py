"""`edistill evaluate`: ensemble, mean member and student side by side, and how near the student is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.manifest import refuse_other_data
from ensemble_distill.cache.reader import Cache, Records
from ensemble_distill.caching import numbered
from ensemble_distill.config import Settings
from ensemble_distill.data.source import Source
from ensemble_distill.data.views import open_view
from ensemble_distill.errors import EdistillError
from ensemble_distill.evaluation import fidelity, metrics, ood
from ensemble_distill.evaluation.cost import cost
from ensemble_distill.evaluation.rows import (
    Rows,
    concatenate,
    fidelity_rows,
    member_rows,
    prediction_rows,
    prefixed,
)
from ensemble_distill.facts import Preprocessing
from ensemble_distill.predictive.categorical import Categorical
from ensemble_distill.runtime.devices import loader_workers, resolve
from ensemble_distill.runtime.files import write_json, write_whole
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.students.run import Run
from ensemble_distill.students.student import Student
from ensemble_distill.teachers.outputs import forward, to_logits
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.training.plain_rows import BATCH, plain_batches
from ensemble_distill.workflows.runs import find_run
from ensemble_distill.workflows.splits import open_ensemble, open_split, plan_split

SCHEMA = 1
PLAIN = open_view("none", None)


@dataclass(frozen=True)
class Evaluated:
    """The rows of one split: of the three models, and of student against ensemble."""

    ensemble: Rows
    member: Rows
    student: Rows
    both: Rows


def evaluate(
    settings: Settings,
    run: str | None = None,
    *,
    split: str | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare a run with its ensemble on a split and on the OOD sets.

    The members' outputs come from the cache where it holds the split, else straight from the teachers.

    Args:
        run: a run's folder or name; the latest by default.
        split: test by default, or validation where there is no test.
        trust: load pickled checkpoints that name arbitrary globals.

    Returns:
        The document that `evaluate --json` prints; it is also kept in the run, `evaluations/SPLIT.json`, with
        the figures of each row beside it in `.npz`.

    Raises:
        EdistillError: no such run or split; the data is not what the cache was made from, or not what the
            student takes; the members are not those of the run.
    """
    progress = progress or Silent()
    found = find_run(settings, run)
    if split is None:
        split = next((name for name in ("test", "validation") if name in settings.splits()), "test")
    evaluation = _Evaluation(settings, found, trust, progress)
    main = evaluation.rows(split)
    elsewhere = {n.removeprefix("ood/"): evaluation.rows(n) for n in settings.splits() if n.startswith("ood/")}
    document = {
        "schema": SCHEMA,
        "task": found.config.task,
        "run": found.folder.name,
        "split": split,
        "rows": len(main.student["total_uncertainty"]),
        "models": {
            "ensemble": metrics.classification(main.ensemble),
            "member": metrics.classification(main.member),
            "student": metrics.classification(main.student),
        },
        "fidelity": fidelity.fidelity(main.ensemble, main.member, main.student, main.both),
        "ood": {
            name: {
                model: ood.detection(getattr(main, model), getattr(rows, model))
                for model in ("ensemble", "member", "student")
            }
            for name, rows in elsewhere.items()
        },
        "cost": evaluation.cost(split),
    }
    folder = found.folder / "evaluations"
    write_json(folder / f"{split}.json", document)
    write_whole(folder / f"{split}.npz", _npz(main))
    for name, rows in elsewhere.items():
        write_whole(folder / "ood" / f"{name}.npz", _npz(rows))
    return document


class _Evaluation:
    def __init__(self, settings: Settings, run: Run, trust: bool, progress: Progress) -> None:
        self.settings, self.run, self.trust, self.progress = settings, run, trust, progress
        self.device = resolve(settings.train.device)
        self.workers = loader_workers(settings.train.workers, self.device)
        self.student: Student = run.student().to(self.device)
        folder = Path(settings.output.cache)
        self.cache = Cache(folder) if (folder / MANIFEST).is_file() else None
        weights = run.config.pooling(len(run.config.members))
        self.weights = None if weights is None else weights.double()

    @torch.no_grad()
    def rows(self, split: str) -> Evaluated:
        """Every row's figures on one split; labels of OOD sets mean nothing here."""
        source = self._open(split)
        labels = None if split.startswith("ood/") else source.labels
        parts: dict[str, list[Rows]] = {"ensemble": [], "member": [], "student": [], "both": []}
        self.progress.start(f"evaluating {split}", total=len(source), unit="rows")
        members = self._members(split, source)
        inputs = plain_batches(source, PLAIN, self.run.config.preprocessing, self.workers)
        for (rows, x), logits in zip(inputs, members, strict=True):
            ensemble = Categorical(torch.from_numpy(logits).double(), self.weights, self.run.config.average)
            raw = self.student(x.to(self.device)).cpu().double()
            student = self.student.predictive(raw)
            y = None if labels is None else torch.as_tensor(np.asarray(labels[list(rows)])).long()
            parts["ensemble"].append(prediction_rows(ensemble, y))
            parts["member"].append(member_rows(ensemble, y))
            parts["student"].append(prediction_rows(student, y))
            parts["both"].append(fidelity_rows(ensemble, student))
            self.progress.advance(len(rows))
        self.progress.finish()
        return Evaluated(**{name: concatenate(batches) for name, batches in parts.items()})

    def cost(self, split: str) -> dict[str, metrics.Figures | None]:
        """Of one row of the split: of the student, and of the ensemble where the teachers are at hand."""
        source = self._open(split)
        figures: dict[str, metrics.Figures | None] = {"ensemble": None}
        if Path(self.settings.teachers.path).exists():
            inputs = [_first(source, teacher.member.preprocessing) for teacher in self._teachers]
            figures["ensemble"] = cost([module.cpu() for module in self._modules.values()], inputs)
        figures["student"] = cost([self.student.cpu()], [_first(source, self.run.config.preprocessing)])
        return figures

    def _open(self, split: str) -> Source:
        """A split whose rows the student takes, and whose labels mean its classes."""
        source, config = open_split(self.settings, split), self.run.config
        named, wants = f"data.{split.replace('/', '.')}", f"{self.run.folder} takes {config.kind} of {config.shape}"
        if source.kind != config.kind:
            raise EdistillError(f"{named} holds {source.kind}, and {wants}. Give rows like those it was trained on.")
        shape = tuple(_first(source, config.preprocessing).shape[1:])
        if shape != config.shape:
            raise EdistillError(
                f"{named} gives inputs of {shape}, and {wants}. Give rows like those it was trained on."
            )
        if split.startswith("ood/"):
            return source
        names, known = source.classes, config.classes != numbered(len(config.classes))
        if names is not None and (len(names) != len(config.classes) or (known and names != config.classes)):
            raise EdistillError(
                f"{named} has the classes {', '.join(names[:4])}, … ({len(names)}), and {self.run.folder} has "
                f"{', '.join(config.classes[:4])}, … ({len(config.classes)}). Give it the same class folders."
            )
        if source.labels is not None and source.labels.max() >= len(config.classes):
            raise EdistillError(
                f"{named} has label {source.labels.max()}, and {self.run.folder} has classes 0 to "
                f"{len(config.classes) - 1}. Give the data the members were trained on."
            )
        return source

    @cached_property
    def _teachers(self) -> list[Teacher]:
        """The members of this run, from the teachers' folder; what the run says of them must still hold."""
        classes, members = self.run.config.classes, self.run.config.members
        names = None if classes == numbered(len(classes)) else classes
        found = {teacher.member.sha256: teacher for teacher in open_ensemble(self.settings, names, self.trust)}
        for member in members:
            if member.sha256 not in found:
                raise EdistillError(
                    f"{self.run.folder} was trained from member {member.name} ({member.sha256[:12]}…), which is not "
                    f"among the teachers in {self.settings.teachers.path}. Put it back."
                )
            for what in ("output", "preprocessing"):
                there, here = getattr(member, what), getattr(found[member.sha256].member, what)
                if there != here:
                    raise EdistillError(
                        f"{self.run.folder} was trained from member {member.name} with {what} {there}, but now it is "
                        f"{here}. Set teachers.{what} back."
                    )
        return [replace(found[member.sha256], member=member) for member in members]

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return {teacher.member.name: teacher.build() for teacher in self._teachers}

    def _members(self, split: str, source: Source) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """The members' logits (B, M, K), batch by batch as `plain_batches` cuts them."""
        records = self._records(split, source)
        if records is not None:
            at = [records.members.index(member.name) for member in self.run.config.members]
            for start in range(0, len(source), BATCH):
                yield records.read(range(start, min(start + BATCH, len(source))))[:, at]
        else:
            yield from self._straight(split, source)

    def _records(self, split: str, source: Source) -> Records | None:
        """The cached outputs of this split, when the cache has it plain and for this run's members."""
        if self.cache is None or self.cache.manifest.views(split) == 0:
            return None
        manifest = self.cache.manifest
        cached = manifest.splits[split]
        here = {member.name: member for member in manifest.members}
        if cached.transform != "none" or any(here.get(m.name) != m for m in self.run.config.members):
            return None
        refuse_other_data(self.cache.folder, split, cached, plan_split(self.settings, split, source).facts())
        return self.cache.open(split)

    def _straight(self, split: str, source: Source) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        """The members run on the rows now; members of equal preprocessing share the rendering."""
        members = [teacher.member for teacher in self._teachers]
        different = list(dict.fromkeys(member.preprocessing for member in members))
        streams = [plain_batches(source, PLAIN, to, self.workers) for to in different]
        for batches in zip(*streams, strict=True):
            outputs = []
            for member in members:
                rows, x = batches[different.index(member.preprocessing)]
                module = self._modules[member.name].to(self.device)
                raw = forward(module, x.to(self.device), member, f"at row {rows[0]} of {split}")
                outputs.append(to_logits(raw, member, split, rows))
            yield np.stack(outputs, axis=1)


def _first(source: Source, to: Preprocessing | None) -> torch.Tensor:
    """The input (1, ...) that row 0 becomes."""
    return torch.from_numpy(PLAIN.plan(0, 0, 0, len(source)).x([source.item(0)], to))[None]


def _npz(evaluated: Evaluated) -> bytes:
    file = io.BytesIO()
    named: Rows = {}
    for model in ("ensemble", "member", "student", "both"):
        named |= prefixed(model, getattr(evaluated, model))
    small: dict[str, Any] = {name: values.astype(np.float32) for name, values in named.items()}
    np.savez_compressed(file, **small)
    return file.getvalue()
