"""The only loop: it runs a method's stages over cached rows, and resumes to the same bytes after a kill."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.methods.method import Batch, Labels, Stage, Step
from ensemble_distill.predictive.protocol import Average, Family, Predictive
from ensemble_distill.runs.folder import CHECKPOINT
from ensemble_distill.runs.run import misfit
from ensemble_distill.runtime.loading import batches
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.settings import TrainSettings
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.students.per_head import normalizes_batches
from ensemble_distill.students.student import Student
from ensemble_distill.training.checkpoint import damaged, load_state, random_state, restore_random_state, save_state
from ensemble_distill.training.finite import number, refuse_not_finite
from ensemble_distill.training.memory_format import channels_last, channels_last_state, laid_out
from ensemble_distill.training.optimization import optimization
from ensemble_distill.training.order import Every, Order, Steps
from ensemble_distill.training.rows import CachedRows, CachedSplit, Rows, TeacherOutputs, collate
from ensemble_distill.training.rows_at_once import remedy
from ensemble_distill.training.shares import boundaries
from ensemble_distill.training.summary import Summary

# rows in their views that a stage solves from: so many for each weight of an output, within bounds
FITTED, FEWEST, MOST = 128, 2**14, 2**19
Validate = Callable[[Student, Stage], dict[str, float]]  # the student in eval mode to named figures


@dataclass(frozen=True)
class Pooling:
    """How the members' outputs become one prediction."""

    family: Family  # what their numbers mean
    weights: Tensor | None = None  # (M,), summing to 1
    average: Average = "probabilities"

    def predictive(self, outputs: Tensor) -> Predictive:
        """Outputs (B, M, W) as M distributions a row, with weights of their own: a method's loss is anyone's code."""
        weights = None if self.weights is None else self.weights.clone()
        return self.family.predictive(outputs, weights, self.average)


@dataclass
class _State:
    """What a step changes."""

    stage: int
    step: int  # steps done in the whole training
    student: Student
    optimizer: torch.optim.Optimizer
    scheduler: Any  # timm's
    ema: Any  # timm's ModelEmaV3, or None
    scaler: torch.amp.GradScaler
    summary: Summary = field(default_factory=Summary)


class Training:
    """One training, from its first step or from where it was interrupted.

    Raises:
        EdistillError: there are fewer steps than stages, or timm has no such optimizer. Nothing is written before.
    """

    def __init__(
        self,
        folder: Path,
        student: Student,
        stages: Sequence[Stage],
        splits: Sequence[CachedSplit],
        rows: CachedRows,
        order: Order,
        pooling: Pooling,
        settings: TrainSettings,
        device: torch.device,
        workers: int,
        progress: Progress,
        validate: Validate | None = None,
        claim: Callable[[], None] = lambda: None,
        replacing: bool = False,
        start: FromMembers | None = None,
    ) -> None:
        """
        Args:
            claim: makes the folder this training's own; called once, before its first file is written there.
            start: sets the first stage's heads before its first step; None where they start as they are.
            replacing: the folder holds another run, which stays until the first checkpoint of this one.
        """
        self.folder, self.stages, self.rows, self.order = folder, stages, rows, order
        self.pooling, self.settings, self.device, self.workers = pooling, settings, device, workers
        self.progress, self.validate = progress, validate
        self.claim, self.replacing, self._claimed = claim, replacing, False
        self.start = start
        self.outputs = TeacherOutputs(splits)
        self.steps = settings.epochs * order.steps_per_epoch
        self.ends = boundaries(stages, self.steps)
        torch.manual_seed(settings.seed)
        self._first = self._state(self._started(student.to(device), 0), 0)
        self.resumed_at = 0  # the step that `run` went on from

    def run(self) -> Student:
        """Train and return the finished student: the last step's, or its moving average where that is on.

        Raises:
            EdistillError: the loss is not finite, or the checkpoint is damaged.
        """
        torch.manual_seed(self.settings.seed)
        saved = None if self.replacing else load_state(self.folder)
        if not self.replacing:
            self._own()
        self.resumed_at = 0 if saved is None else int(saved["step"])
        state = self._beginning() if saved is None else self._restore(saved)
        self.progress.start("training", self.steps, "steps", done=state.step)
        loader = self._loader(state.step)
        last_save = time.monotonic()
        started = time.monotonic()
        for batch in loader:
            if state.step == self.ends[state.stage]:
                state = self._following(state)
            loss = self._step(state, batch)
            state.step += 1
            self.progress.advance(1, {"loss": loss})
            if state.step % self.order.steps_per_epoch == 0:
                self._log(state, time.monotonic() - started)
                started = time.monotonic()
                self._save(state)
                last_save = time.monotonic()
            elif time.monotonic() - last_save > 60 * self.settings.checkpoint_minutes:
                self._save(state)
                last_save = time.monotonic()
        self.progress.finish()
        if self.steps == 0:
            self._refuse_not_finite(state.student)
        self._own()  # without a step nothing has been written
        return self._finished(state)

    @torch.no_grad()
    def _refuse_not_finite(self, student: Student) -> None:
        student.eval()
        for rows in batches(self.rows, Every(self.order, FEWEST), collate, self.workers, self.device):
            refuse_not_finite(student.heads(self._body(student, rows)), rows.indices[:, 0].tolist())

    def seconds_a_batch(self, steps: int = 3) -> tuple[float, float, float]:
        """Of an update, of a pass without one, and of rendering; measured on a copy, before `run`."""
        devices = [self.device] if self.device.type == "cuda" else []
        taken = []
        with torch.random.fork_rng(devices=devices):
            state = self._state(copy.deepcopy(self._first.student), 0)
            for at in range(1 + steps):  # the first one, which sets things up, does not count
                times = [time.monotonic()]
                rows = collate([self.rows[index] for index in self.order.batch(at)])
                times.append(time.monotonic())
                self._step(state, rows)
                times.append(time.monotonic())
                state.student.eval()
                with torch.no_grad():
                    self._body(state.student, rows).sum().item()
                times.append(time.monotonic())
                self._learning(state.student)
                taken.append([later - earlier for earlier, later in pairwise(times)])
        rendering, update, asked = (min(each) for each in zip(*taken[1:], strict=True))
        return update, asked, rendering / max(1, self.workers)

    @property
    def keeps_rows(self) -> bool:
        """Whether a row in a view is rendered once, and not at every step."""
        return self.workers == 0 and self.rows.kept

    def sizes(self) -> tuple[int, int]:
        """Bytes of the student, and of a checkpoint at most: with two moments, and the average where there is one."""
        student = sum(tensor.nbytes for tensor in self._first.student.state_dict().values())
        return student, student * (4 if self.settings.model_ema else 3)

    def _own(self) -> None:
        if not self._claimed:
            self.claim()
            self._claimed = True

    def _loader(self, start: int) -> Iterator[Rows]:
        steps = Steps(self.order, start, self.steps)
        return batches(self.rows, steps, collate, self.workers, self.device)

    def _started(self, student: Student, stage: int) -> Student:
        """A stage's student, made from the last one's."""
        student = self.stages[stage].start(student).to(self.device)
        if self.settings.channels_last:
            channels_last(student)
        return self._learning(student)

    def _learning(self, student: Student) -> Student:
        """The student in training mode; statistics that are to stay are used as in evaluation.

        A body started from a member is that member only under the member's own statistics: mixed views have others,
        and a student normalized by theirs would be somebody else on plain rows.
        """
        student.train()
        if self.settings.freeze_bn:
            for module in student.modules():
                if normalizes_batches(module):
                    module.eval()
        return student

    def _beginning(self) -> _State:
        student = self._first.student
        started = self._start(student)
        solved = self._fit(student, 0) or started
        return self._state(student, 0) if solved else self._first  # its average starts from the solution

    def _following(self, state: _State) -> _State:
        """The next stage, before its first step."""
        student = self._started(self._finished(state), state.stage + 1)
        if self._fit(student, state.stage + 1):
            self.progress.start("training", self.steps, "steps", done=state.step)
        following = self._state(student, state.stage + 1)
        following.step, following.summary = state.step, state.summary
        return following

    def _start(self, student: Student) -> bool:
        """Take the heads from the members; False where there is nothing to take."""
        if self.start is None:
            return False
        every = Every(self.order, self.start.rows(self.rows[0, 0].x.shape))
        self.progress.start("starting from the members", every.count, "rows")
        student.eval()
        kept = self.start(student, self._inputs(every))
        self._learning(student)
        self.start = None  # and with it the members, which are large
        self.progress.finish()
        self.progress.note(
            f"Adapters say {100 * kept:.3g} % of the variance of what the members' last stages are given."
        )
        return True

    def _inputs(self, every: Every) -> Iterator[Tensor]:
        for rows in batches(self.rows, every, collate, self.workers, self.device):
            yield rows.x.to(self.device, non_blocking=True)
            self.progress.advance(len(rows.indices))

    def _fit(self, student: Student, stage: int) -> bool:
        """Solve for what the stage solves for; False when that is nothing."""
        fit = self.stages[stage].fit
        if fit is None:
            return False
        every = Every(self.order, min(max(FITTED * student.heads.last.weight.shape[1], FEWEST), MOST))
        self.progress.start(f"solving for {self.stages[stage].name}", every.count, "rows")
        student.eval()  # by running statistics, as it will be used
        with torch.no_grad():
            fit(student, self._features(student, every))
        self._learning(student)
        self.progress.finish()
        return True

    def _features(self, student: Student, every: Every) -> Iterator[tuple[Tensor, Batch]]:
        for rows in batches(self.rows, every, collate, self.workers, self.device):
            yield self._body(student, rows), self._batch(rows)
            self.progress.advance(len(rows.indices))

    def _body(self, student: Student, rows: Rows) -> Tensor:
        x = rows.x.to(self.device, non_blocking=True)
        x = laid_out(x) if self.settings.channels_last else x
        dtype = torch.bfloat16 if self.settings.amp_dtype == "bfloat16" else torch.float16
        with torch.autocast(self.device.type, dtype, enabled=self.settings.amp):
            try:
                features = student.features(x)
            except EdistillError as error:
                raise EdistillError(f"{error} {remedy(student, x, self.settings)}") from error
        if len(features) != len(rows.x):
            raise EdistillError(
                f"The student's body returns {len(features)} rows of {len(rows.x)}. Return features (B, F) in training "
                "mode too."
            )
        return features.float()

    def _state(self, student: Student, stage: int) -> _State:
        """A student at the first step of a stage, with a fresh optimizer, schedule and average."""
        from timm.utils import ModelEmaV3

        settings = self.settings
        steps = max(1, self.ends[stage] - (self.ends[stage - 1] if stage else 0))
        optimizer, scheduler = optimization(student, settings, steps, self.order.steps_per_epoch)
        ema = ModelEmaV3(student, decay=settings.model_ema_decay, use_warmup=True) if settings.model_ema else None
        lower = settings.amp and settings.amp_dtype == "float16"
        scaler = torch.amp.GradScaler(self.device.type, enabled=lower and self.device.type == "cuda")
        return _State(stage, 0, student, optimizer, scheduler, ema, scaler)

    def _step(self, state: _State, rows: Rows) -> float:
        """One update; returns its loss."""
        stage = self.stages[state.stage]
        before = self.ends[state.stage - 1] if state.stage else 0
        step = Step(state.step - before, self.ends[state.stage] - before, self.settings.seed)
        state.scheduler.step_update(step.index)
        batch = self._batch(rows)
        # the heads in full: near-equal ones differ by less than bfloat16 resolves
        raw = state.student.heads(self._body(state.student, rows))
        # what is watched is what was said, whatever the loss does to its own
        seen = None if stage.watch is None else (self._batch(rows), state.student.predictive(raw.detach().clone()))
        loss = stage.loss(batch, state.student.predictive(raw), step)
        value = number(loss, stage.name)
        if not math.isfinite(value):
            kept = "The last checkpoint is kept, and --overwrite starts again."
            raise EdistillError(
                f"The loss is {value} at step {state.step} (stage {stage.name}, train.lr {self.settings.lr}). Lower "
                "train.lr, set train.clip-grad, or bring the options in [method] nearer to their defaults."
                + (f" {kept}" if self._claimed and (self.folder / CHECKPOINT).is_file() else "")
            )
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.settings.clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(state.student.parameters(), self.settings.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.student, step=step.index)
        with torch.no_grad():
            state.summary.add(value, {} if stage.watch is None or seen is None else stage.watch(*seen))
        return value

    def _batch(self, rows: Rows) -> Batch:
        device = self.device
        teacher = self.pooling.predictive(self.outputs.read(rows.indices).to(device, non_blocking=True))
        labels = (y.to(device, non_blocking=True, copy=True) for y in (rows.own, rows.partner, rows.weight, rows.known))
        return Batch(teacher, Labels(*labels) if bool(rows.known.any()) else None)

    def _finished(self, state: _State) -> Student:
        student: Student = state.student if state.ema is None else state.ema.module
        return student

    def _log(self, state: _State, seconds: float) -> None:
        facts = {
            "epoch": state.step // self.order.steps_per_epoch,
            "stage": self.stages[state.stage].name,
            "lr": state.optimizer.param_groups[0]["lr"],
        }
        validated: dict[str, float] = {}
        if self.validate is not None:
            student = self._finished(state)
            student.eval()
            validated = self.validate(student, self.stages[state.stage])
            if student is state.student:
                self._learning(student)
        self._own()  # from here on nothing of the student's own can fail, and the run that it replaces may go
        state.summary.end_epoch(facts, {**validated, "seconds": round(seconds, 2)})
        state.summary.write(self.folder)

    def _save(self, state: _State) -> None:
        self._own()
        save_state(
            self.folder,
            {
                "stage": state.stage,
                "step": state.step,
                "student": state.student.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "ema": None if state.ema is None else state.ema.module.state_dict(),
                "scaler": state.scaler.state_dict(),
                "random": random_state(self.device),
                **state.summary.saved(),
            },
        )

    def _restore(self, saved: dict[str, Any]) -> _State:
        state = self._first
        try:
            for stage in range(1, saved["stage"] + 1):  # shapes only: the weights come from the checkpoint
                state = self._state(self._started(state.student, stage), stage)
            state.step = saved["step"]
            state.student.load_state_dict(saved["student"])
            state.optimizer.load_state_dict(saved["optimizer"])
            if self.settings.channels_last:
                channels_last_state(state.optimizer)
            if state.ema is not None:
                state.ema.module.load_state_dict(saved["ema"])
            if saved["scaler"]:  # empty after steps without one, on a CPU
                state.scaler.load_state_dict(saved["scaler"])
            restore_random_state(saved["random"], self.device)
            state.summary = Summary.restored(saved)
        except (RuntimeError, ValueError) as error:
            told = misfit(saved["student"], state.student.state_dict()) or first_line(error)
            raise EdistillError(
                f"The checkpoint in {self.folder} does not fit the student: {told}. The code of student.model or "
                "config.json has changed since: put it back, or run edistill train --overwrite."
            ) from None
        except (LookupError, TypeError, AttributeError) as error:  # what `_save` never wrote
            raise damaged(self.folder, error) from None
        return state
