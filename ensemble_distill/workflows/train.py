"""`edistill train`: a student from the cache, by a method."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from ensemble_distill.cache.manifest import NAME as MANIFEST
from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.methods import open_method
from ensemble_distill.methods.method import Method
from ensemble_distill.predictive import members_family
from ensemble_distill.predictive.dirichlet import DirichletFamily
from ensemble_distill.runs.args import refuse_other_settings, write_args
from ensemble_distill.runs.chain import is_chain
from ensemble_distill.runs.folder import ARGS, CONFIG, FILES, WEIGHTS
from ensemble_distill.runs.run import Run
from ensemble_distill.runs.same import refuse_other_ensemble, refuse_other_method
from ensemble_distill.runs.trust import Trust
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.devices import loader_workers, resolve
from ensemble_distill.runtime.files import clear_folder, write_whole
from ensemble_distill.runtime.lock import one_writer
from ensemble_distill.runtime.own_row import some_rows
from ensemble_distill.runtime.progress import Progress, Silent
from ensemble_distill.settings import Settings
from ensemble_distill.starts.compressing import Compressing
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.students.student import Student
from ensemble_distill.training.checkpoint import Place
from ensemble_distill.training.feed import Feed, Pooling
from ensemble_distill.training.loop import Setup, Training
from ensemble_distill.training.order import Order, boundaries
from ensemble_distill.training.rows import CachedRows, TeacherOutputs
from ensemble_distill.training.student import build_student, refuse_broken, starting_members
from ensemble_distill.training.validation import validation
from ensemble_distill.workspace.folders import refuse_foreign
from ensemble_distill.workspace.idle import Learning, tell_idle_training
from ensemble_distill.workspace.learned import cached_split, cached_teachers, learned_from
from ensemble_distill.workspace.splits import (
    TRAINED,
    plan_splits,
    student_preprocessing,
    trusted_by,
)


@dataclass(frozen=True)
class TrainReport:
    """A finished run, and what this call did for it."""

    folder: Path
    method: str
    heads: int
    parameters: int
    fresh: bool  # False: it was up to date
    resumed_at: int  # the step an interrupted training went on from; 0 for a new one
    seconds: float


def train(
    settings: Settings,
    *,
    overwrite: bool = False,
    trust: bool = False,
    progress: Progress | None = None,
    begin: Callable[[Training], None] | None = None,
    claim: Callable[[], None] = lambda: None,
    own_runs: Path | None = None,
) -> TrainReport:
    """Train the configured student; an interrupted run resumes, a finished one is left as it is.

    Several generations are `train_chain`'s.

    Args:
        overwrite: replace the run that is there, once the new one has a checkpoint.
        trust: load pickled checkpoints that name arbitrary globals.
        begin: is given the training before its first step, when nothing has been written yet.
        claim: is called just before the run's folder is made its own, and the run that is to be replaced goes.
        own_runs: where runs stand whose code may make their bodies; output.runs by default.

    Raises:
        EdistillError: the cache is missing, unfinished, damaged or of other data, members or views; the run was
            made with other settings; the student or the method cannot be built.
    """
    started = time.monotonic()
    progress = progress or Silent()
    if settings.train.generations is not None:
        raise EdistillError(
            f"train.generations is {settings.train.generations}, and this trains one run. Use train_chain of "
            "ensemble_distill.chains.generations."
        )
    method, options = settled_method(settings)
    folder = run_folder(settings)
    _refuse_unfit(folder, settings, options)
    trusted = trusted_by(settings, trust, own_runs)

    def up_to_date() -> TrainReport | None:
        if overwrite or not _has_trained(folder):
            return None
        refuse_other_settings(folder, settings)
        refuse_other_method(folder, method.source, settings.train.method)
        if (Path(settings.output.cache) / MANIFEST).is_file():
            cache = learned_from(settings, Cache(Path(settings.output.cache)))
            digests = {name: split.digest for name, split in cache.manifest.splits.items()}
            refuse_other_ensemble(folder, cache.folder, cache.manifest.members, digests)
        if not (folder / WEIGHTS).is_file():
            return None
        run = Run.open(folder)  # finished: it no longer needs its cache
        return _report(run, run.student(trust=trusted), fresh=False, resumed_at=0, started=started)

    # first without the lock: what is finished may stand where nobody may write
    if (folder / WEIGHTS).is_file() and (report := up_to_date()) is not None:
        return report
    with one_writer(folder):
        if (report := up_to_date()) is not None:
            return report
        cache = Cache(Path(settings.output.cache))
        return _train(folder, settings, method, options, cache, overwrite, trusted, progress, started, begin, claim)


def _refuse_unfit(folder: Path, settings: Settings, options: BaseModel) -> None:
    """Raise EdistillError for what no cache could mend: settings, or a folder that is no run's to write to."""
    temperature = getattr(options, "temperature", 1.0)
    if settings.task == "regression" and temperature != 1:
        raise EdistillError(
            f"method.temperature is {temperature}, and with it a student of numbers would misstate its variance. For "
            "regression leave it at 1."
        )
    refuse_foreign(folder, ARGS, "a run", "output.runs or --name")
    if (folder / MANIFEST).is_file():
        raise EdistillError(f"{folder} is a cache, and a run needs a folder of its own. Choose another --name.")
    if is_chain(folder):
        raise EdistillError(
            f"{folder} is a chain of generations, and a run needs a folder of its own. Choose another --name, or pass "
            "--generations."
        )
    if settings.student.model is None:
        raise EdistillError(
            "student.model is not set. Give a timm name, or a factory whose output is (B, F): student.model = "
            '"model.py:make_body".'
        )
    processes = ranks.current().world
    if processes > 1:
        raise EdistillError(f"torchrun started {processes} processes, and training runs in one. Run it by itself.")


def _has_trained(folder: Path) -> bool:
    """Whether a run holds more than what it was to be: one that failed at its first step may be another's."""
    return any((folder / name).exists() for name in FILES if name not in (ARGS, CONFIG))


def settled_method(settings: Settings) -> tuple[Method, BaseModel]:
    """The method and its options, with defaults that depend on the other settings.

    Raises:
        EdistillError: there is no such method or option, or it is for another task.
    """
    method = open_method(settings.train.method)
    options = method.settled(method_options(method, settings), settings.task, settings.student.from_members)
    if settings.task not in method.tasks:
        raise EdistillError(
            f"{settings.train.method} is for {' and '.join(sorted(method.tasks))}, and the task is {settings.task}. "
            "Use another --method; edistill methods lists them."
        )
    return method, options


def run_folder(settings: Settings) -> Path:
    """Where the run goes: output.runs/METHOD-sSEED, or the name it was given."""
    name = settings.output.name
    if name is None:
        method = settings.train.method.rpartition(":")[2]
        name = f"{method}-s{settings.train.seed}"
    return Path(settings.output.runs) / name


def method_options(method: Method, settings: Settings) -> BaseModel:
    """The `[method]` table, validated by the method itself."""
    try:
        return method.Options.model_validate(settings.method)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            raise EdistillError(f"method.{key} is not set, and {settings.train.method} needs it. Set it.") from None
        valid = ", ".join(name.replace("_", "-") for name in method.Options.model_fields) or "none"
        if problem["type"] == "extra_forbidden":
            raise EdistillError(
                f"method.{key} is no option of {settings.train.method}. Its options are {valid}."
            ) from None
        raise EdistillError(f"method.{key} is {problem['input']!r}: {problem['msg']}.") from None


def _train(
    folder: Path,
    settings: Settings,
    method: Method,
    options: BaseModel,
    cache: Cache,
    overwrite: bool,
    trusted: Trust,
    progress: Progress,
    started: float,
    begin: Callable[[Training], None] | None,
    claim_more: Callable[[], None],
) -> TrainReport:
    trained = [name for name in TRAINED if name in settings.splits()]
    if "train" not in trained:
        raise EdistillError("data.train is not set. Set it to the data the cache was made from.")
    plans = plan_splits(settings, trained, cache.manifest.classes)
    needs = method.needed(options)
    if "labels" in needs and plans["train"].source.labels is None:
        raise _unlabeled(settings, method)
    sources = {name: plan.source for name, plan in plans.items()}
    if "teacher" not in needs:  # nothing says what an unlabeled row should be
        plans = {name: plan for name, plan in plans.items() if plan.source.labels is not None}
    teachers = cached_teachers(settings, cache, plans, trusted)
    if settings.train.teacher is not None:
        cache = learned_from(settings, cache)
    splits = [cached_split(cache, name, plan) for name, plan in plans.items()]

    preprocessing = student_preprocessing(settings.student.preprocessing, cache.manifest.members[0].preprocessing)
    rows = CachedRows(splits, preprocessing)
    device = resolve(settings.train.device)
    order = Order(len(rows), splits[0].records.views, settings.train.batch_size, settings.train.seed, ranks.current())
    torch.manual_seed(settings.train.seed)
    config, student, start = build_student(
        folder, settings, method, options, cache, plans, teachers, preprocessing, _some(rows)
    )
    if device.type == "mps" and isinstance(config.architecture.family, DirichletFamily):
        raise EdistillError(
            f"{settings.train.method} computes in float64, which train.device {device.type!r} does not have. Use "
            "--device cpu."
        )
    stages = method.stages(options, len(config.provenance.members))
    refuse_broken(settings.train.method, stages, student, config.architecture, start is not None)
    normalizes = any(map(normalizes_batches, student.modules()))
    tell_idle_training(Learning(settings, sources, method, options, stages, normalizes), progress)
    if settings.student.compresses:  # which may take minutes: what training would refuse, it refuses before
        boundaries(stages, settings.train.epochs * order.steps_per_epoch)
        names = [teacher.member.name for teacher in starting_members(settings, teachers)]
        compressing = Compressing(rows, order, device, progress, None if overwrite else folder)
        architecture = compressing.start(
            settings.student, config.architecture, config.provenance.members, student, start, names
        )
        config = replace(config, architecture=architecture)
    pooling = Pooling(members_family(settings.task), config.architecture.pooling(), config.architecture.average)

    def claim() -> None:
        claim_more()
        if overwrite:
            clear_folder(folder, FILES, last=ARGS)
        write_args(folder, settings)
        write_whole(folder / CONFIG, config.content())

    workers = loader_workers(settings.train.workers, device)
    training = Training(
        Setup(
            student=student,
            stages=stages,
            feed=Feed(rows, TeacherOutputs(splits), order, pooling, device, workers),
            settings=settings.train.model_copy(update={"freeze_bn": _freezes(settings)}),
            place=Place(folder, claim, replacing=overwrite),
            progress=progress,
            validate=validation(settings, cache, preprocessing, pooling, device, "labels" in needs),
            start=start,
        )
    )
    if begin is not None:
        begin(training)
    student = training.run().eval()
    run = Run.save(folder, config, student.cpu())
    return _report(run, student, fresh=True, resumed_at=training.resumed_at, started=started)


def _unlabeled(settings: Settings, method: Method) -> EdistillError:
    asked = ", ".join(f"{key} = {value!r}" for key, value in settings.method.items())
    with_options = f" with {asked}" if asked else ""
    without = "Use a method that needs none." if "labels" in method.needs else "Choose options that need none."
    return EdistillError(f"{settings.train.method}{with_options} needs labels, and data.train has none. {without}")


def _some(rows: CachedRows) -> torch.Tensor:
    """A few training rows, (B, …), as the student sees them."""
    return torch.from_numpy(np.stack([rows[row, 0].x for row in some_rows(len(rows))]))


def _freezes(settings: Settings) -> bool:
    asked = settings.train.freeze_bn
    return settings.student.init is not None if asked is None else asked


def _report(run: Run, student: Student, fresh: bool, resumed_at: int, started: float) -> TrainReport:
    return TrainReport(
        folder=run.folder,
        method=run.provenance.method,
        heads=run.architecture.heads,
        parameters=sum(p.numel() for p in student.parameters()),
        fresh=fresh,
        resumed_at=resumed_at,
        seconds=time.monotonic() - started,
    )
