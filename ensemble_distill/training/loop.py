"""The only training loop: it runs a method's stages over cached rows, and resumes to the same bytes after a kill."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from ensemble_distill.errors import EdistillError
from ensemble_distill.logs import Logs
from ensemble_distill.methods.method import Stage
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.stopping import stop_waits
from ensemble_distill.starts.from_members import FromMembers
from ensemble_distill.students.same_function import answers_to, change
from ensemble_distill.students.student import Student
from ensemble_distill.training.budget import SettledTraining
from ensemble_distill.training.checkpoint import RunPlace
from ensemble_distill.training.compiled import refuse_other_gradients
from ensemble_distill.training.convergence import still_falling
from ensemble_distill.training.feed import Feed
from ensemble_distill.training.plateau import Plateau
from ensemble_distill.training.rows import Rows
from ensemble_distill.training.solving import Solving
from ensemble_distill.training.state import State, States, own_seed
from ensemble_distill.training.stepping import READ_EVERY, Stepping

ANSWERS = "answers"  # key of a checkpoint: what its student returns for two rows, see `same_function`
KEPT = 100  # maximum number of epochs that end with validation and a save, which take longer than a few steps
Validate = Callable[[Student, Stage], dict[str, float]]  # the student in eval mode to named figures


@dataclass(frozen=True)
class Setup:
    """Everything a training consists of.

    Attributes:
        student: one-headed, as the first stage takes it; it is trained in place.
        validate: figures to report for an epoch beside the loss; None for no validation.
        log: where figures go, besides the summary.
        start: sets the first stage's heads before its first step; None to leave them as they are.
    """

    student: Student
    stages: Sequence[Stage]
    feed: Feed
    settings: SettledTraining
    place: RunPlace
    progress: Progress
    log: Logs = field(default_factory=Logs)
    validate: Validate | None = None
    start: FromMembers | None = None


def checkpoint_bytes(student: int, averaged: bool) -> int:
    """Maximum size of a checkpoint: the student, two optimizer moments and, if there is one, the average.

    Args:
        student: bytes of its weights.
        averaged: whether there is a moving average.
    """
    return student * (4 if averaged else 3)


def largest(student: Student, stages: Sequence[Stage]) -> int:
    """Maximum number of bytes of the student's weights, at first or as one of the stages makes it.

    Args:
        student: not changed, since the stages get a copy.
    """
    devices = {tensor.device for tensor in student.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        made = [copy.deepcopy(student)]
        for stage in stages:
            made.append(stage.start(made[-1]))
    sizes: list[int] = [sum(tensor.nbytes for tensor in one.state_dict().values()) for one in made]
    return max(sizes)


def _until(asked: Callable[[], bool], steps: Iterable[Rows], first: int) -> Iterator[Rows]:
    """The rows of each step, until a stop is requested; `first` counts the steps done before.

    Once a stop is requested, an EdistillError is ignored: the same signal may have ended the loader processes. Several
    processes stop after the same step, and ask each other only every `READ_EVERY` steps.
    """
    try:
        for step, rows in enumerate(steps, first + 1):
            yield rows
            if ranks.several():
                if step % READ_EVERY == 0 and any(ranks.of_each(asked())):
                    return
            elif asked():
                return
    except EdistillError:
        if not asked():
            raise


class Training:
    """One training, from its first step or from where it was interrupted.

    Attributes:
        steps: number of steps of the whole training.
        resumed_at: the step at which `run` resumed; 0 for a new training.
        still_falling: set by `run`; see the function `still_falling`.

    Raises:
        EdistillError: there are fewer steps than stages, or timm has no such optimizer. Nothing has been written then.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.feed, self.place, self.progress = setup, setup.feed, setup.place, setup.progress
        self.log = setup.log
        device = self.feed.device
        self._states = States(setup.stages, self.feed.order, setup.settings, device)
        self._forward = self._states.forward
        self._solving = Solving(self.feed, self._forward, self.progress)
        self._stepping = Stepping(self._states, self.feed, self._forward)
        self.steps = self._states.steps
        self.resumed_at = 0
        self.still_falling: float | None = None
        self._seconds: tuple[float, float, float] | None = None  # see `seconds_a_batch`
        torch.manual_seed(setup.settings.seed)
        self._first = self._states.fresh(self._states.started(setup.student.to(device), 0), 0)

    def run(self) -> Student:
        """Train and return the finished student: that of the last step, or its moving average if enabled.

        Raises:
            EdistillError: the loss is not finite, or the checkpoint is damaged.
        """
        torch.manual_seed(own_seed(self.setup.settings.seed))
        finished = False
        try:
            student = self._run()
            finished = True
        finally:
            self.log.close(finished)
        return student

    def _run(self) -> Student:
        saved = self.place.load()
        ranks.wait()  # until all processes have read it
        if not self.place.replacing:
            self.place.own()
        self.resumed_at = 0 if saved is None else int(saved["step"])
        if not self.place.replacing:  # a replaced run's folder is still to be cleared
            self.log.begin(self.resumed_at)
        state = self._beginning() if saved is None else self._restored(saved)
        self._refuse_other_gradients(state)
        self.progress.start("training", self.steps, "steps", done=state.step)
        with stop_waits() as asked:
            state = self._steps(state, asked)
            if state.step < self.steps:
                self._stop(state)
        if state.step < self.steps:  # stopped, but the signal's own handler did not end the process
            raise KeyboardInterrupt
        self.progress.finish()
        if self.steps == 0:
            ranks.of_first(partial(self._solving.refuse_not_finite, state.student))
        self.place.own()  # with 0 steps nothing has been written yet
        self.log.begin(self.resumed_at)
        self.still_falling = still_falling(state.summary.table)
        return state.finished

    def _steps(self, state: State, asked: Callable[[], bool]) -> State:
        """Run steps from `state` to the last one, or to the first after which a stop is requested."""
        an_epoch, minutes = self.feed.order.steps_per_epoch, self.setup.settings.checkpoint_minutes
        last_save = started = time.monotonic()
        for rows in _until(asked, self.feed.steps(state.step, self.steps), state.step):
            if state.step == self._states.ends[state.stage]:
                state = self._following(state)
            self._step(state, rows)
            self.progress.advance(1, None if state.summary.latest is None else {"loss": state.summary.latest})
            state.summary.seconds += time.monotonic() - started
            started = time.monotonic()
            epoch, within = divmod(state.step, an_epoch)
            kept = within == 0 and self._keeps(epoch)
            if within == 0:
                self._end_epoch(state, kept)
                started = time.monotonic()
            if kept or self._is_due(state, time.monotonic() - last_save > 60 * minutes):
                self._save(state)
                last_save = time.monotonic()
        return state

    @staticmethod
    def _is_due(state: State, due: bool) -> bool:
        """Whether to save within an epoch.

        With several processes, the first one's clock decides, once losses have been read.
        """
        if not ranks.several():
            return due
        return not state.summary.unread and ranks.of_first(lambda: due)

    def _stop(self, state: State) -> None:
        """Save the state, unless the folder still holds a run that this training would replace."""
        if self.place.replacing and not ranks.of_first(lambda: self.place.kept):
            self.progress.note(f"training: ended at step {state.step:,}; the run that was there is kept.")
            return
        self._save(state)
        self.progress.note(f"training: saved at step {state.step:,} of {self.steps:,}.")

    def seconds_a_batch(self) -> tuple[float, float, float]:
        """Seconds of an update, of a pass without gradients, and of rendering one batch.

        Measured once, on a copy, before `run`.
        """
        if self._seconds is None:
            self._seconds = self._measured()
        update, asked, rendering = self._seconds
        return update, asked, rendering / max(1, self.feed.workers)

    def _measured(self, steps: int = 3) -> tuple[float, float, float]:
        devices = [self.feed.device] if self.feed.device.type == "cuda" else []
        taken = []
        with torch.random.fork_rng(devices=devices):
            state = self._states.fresh(copy.deepcopy(self._first.student), 0)
            for at in range(1 + steps):  # the first one sets things up and does not count
                state.step = 0
                times = [time.monotonic()]
                rows = self.feed.of_step(at)
                times.append(time.monotonic())
                self._step(state, rows)
                self._stepping.read(state)
                times.append(time.monotonic())
                state.student.eval()
                with torch.no_grad():
                    self._forward.raw(state.student, rows.x).sum().item()
                times.append(time.monotonic())
                self._forward.learning(state.student)
                taken.append([later - earlier for earlier, later in pairwise(times)])
        rendering, update, asked = (min(each) for each in zip(*taken[1:], strict=True))
        return update, asked, rendering

    def trial(self, workers: int, size: int, steps: int) -> Generator[int]:
        """Train a copy for some steps of `size` rows with `workers` loader processes, yielding each step's row count.

        For a CPU, and before `run`.
        """
        feed = replace(self.feed, workers=workers, order=replace(self.feed.order, batch_size=size))
        with torch.random.fork_rng(devices=[]):
            state = self._states.fresh(copy.deepcopy(self._first.student), 0)
            for rows in feed.steps(0, steps):
                state.step = 0
                self._step(state, rows)
                self._stepping.read(state)
                yield len(rows.x)

    def load_by(self, workers: int) -> None:
        """Render rows in `workers` processes from now on."""
        self.feed = replace(self.feed, workers=workers)
        self._solving = replace(self._solving, feed=self.feed)

    def slowed_by_amp(self) -> float:
        """How many times as long a pass takes in lower precision as in float32; measured on a copy, before `run`."""
        student = copy.deepcopy(self._first.student).eval()
        x = self.feed.of_step(0).x
        whole = replace(self._forward, settings=self.setup.settings.model_copy(update={"amp": False}))
        taken = [(self._forward.seconds(student, x), whole.seconds(student, x)) for _ in range(4)][1:]
        return min(lower for lower, _ in taken) / min(full for _, full in taken)

    @property
    def keeps_rows(self) -> bool:
        """Whether each row of a view is rendered only once, not at every step."""
        return self.feed.keeps_rows

    def sizes(self) -> tuple[int, int]:
        """Bytes of the student with all its heads, and the maximum size of a checkpoint."""
        student = largest(self._first.student, self.setup.stages[1:])
        return student, checkpoint_bytes(student, self.setup.settings.model_ema)

    def _beginning(self) -> State:
        student, start = self._first.student, self.setup.start
        if start is not None:
            self._solving.start(student, start)
        solved = self._solving.fit(student, self.setup.stages[0]) or start is not None
        # a fresh state's moving average starts from the solution
        return self._states.fresh(student, 0) if solved else self._first

    def _restored(self, saved: Mapping[str, Any]) -> State:
        state = self._states.restored(saved, self._first, self.place.folder)
        before, now = saved.get(ANSWERS), answers_to(state.student, self.feed.first_rows())
        if before is not None and now is not None and (apart := change(before, now)) is not None:
            raise EdistillError(
                f"The checkpoint in {self.place.folder} is of a student that returned {apart[0]:.4g} for a row, and "
                f"with the code of today it returns {apart[1]:.4g}. The code of student.model has changed: put it "
                "back, or run edistill train --overwrite."
            )
        return state

    def _following(self, state: State) -> State:
        """The state before the first step of the next stage."""
        self._read(state)
        student = self._states.started(state.finished, state.stage + 1)
        if self._solving.fit(student, self.setup.stages[state.stage + 1]):
            self.progress.start("training", self.steps, "steps", done=state.step)
        following = self._states.fresh(student, state.stage + 1)
        following.summary = state.summary
        self._refuse_other_gradients(following)
        return following

    def _refuse_other_gradients(self, state: State) -> None:
        if self.setup.settings.torchcompile is not None and state.step < self.steps:
            refuse_other_gradients(state.student, self.feed.of_step(state.step).x, self._forward)

    def _step(self, state: State, rows: Rows) -> None:
        try:
            self._stepping.update(state, rows)
        except EdistillError:
            # the cause may be an earlier loss that was not finite: then reading raises that error.
            # Processes that did not fail would not take part in the reading
            if not ranks.several():
                self._stepping.read(state, kept=self.place.kept)
            raise
        if len(state.summary.unread) >= READ_EVERY:
            self._read(state)

    def _read(self, state: State) -> None:
        losses = self._stepping.read(state, kept=self.place.kept)
        if losses:
            rate = state.optimizer.param_groups[0]["lr"]
            self.log.add(state.step, {"loss": sum(losses) / len(losses), "lr": rate})

    def _keeps(self, epoch: int) -> bool:
        """Whether to validate and save at the end of this epoch.

        Trainings of more than `KEPT` epochs do so only at some, unless the learning rate depends on validation.
        """
        epochs, plateau = self.setup.settings.epochs, self.setup.settings.sched == "plateau"
        return plateau or epoch == epochs or epoch % math.ceil(epochs / KEPT) == 0

    def _end_epoch(self, state: State, kept: bool) -> None:
        self._read(state)
        stage = self.setup.stages[state.stage]
        facts = {
            "epoch": state.step // self.feed.order.steps_per_epoch,
            "stage": stage.name,
            "lr": state.optimizer.param_groups[0]["lr"],
        }
        validated: dict[str, float] = {}
        if self.setup.validate is not None and kept:
            student = state.finished.eval()
            validated = ranks.of_first(partial(self.setup.validate, student, stage))
            if student is state.student:
                self._forward.learning(student)
            if isinstance(state.scheduler, Plateau):
                state.scheduler.end_epoch(validated)
        state.summary.end_epoch(facts, validated)
        self.log.add(state.step, {k: v for k, v in state.summary.table[-1].items() if isinstance(v, int | float)})
        if kept:
            self.place.own()  # every part of the student has run once by now, so the run it replaces may go
            if ranks.is_first():
                state.summary.write(self.place.folder)

    def _save(self, state: State) -> None:
        self._read(state)
        self.place.own()
        self.log.begin(self.resumed_at)
        self.log.flush()
        self.place.save({**state.saved(self.feed.device), ANSWERS: answers_to(state.student, self.feed.first_rows())})
