"""How long a chain will take and how much disk it will fill, told before its first step and after each generation."""

from __future__ import annotations

from pathlib import Path

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.facts import TRAINED
from ensemble_distill.runtime.disk import free_bytes
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.runtime.words import bytes_told, counted, duration
from ensemble_distill.settings import Settings
from ensemble_distill.training.forecast import training_seconds
from ensemble_distill.training.loop import Training
from ensemble_distill.training.report import TrainReport


class Forecast:
    """Forecasts a chain from a few steps at first, then from the generations that are done.

    Args:
        folder: the chain's folder.
        left: number of generations that are not finished.
        progress: receives the forecasts.
    """

    def __init__(self, folder: Path, left: int, progress: Progress) -> None:
        self.folder, self.left, self.progress = folder, left, progress
        self._said = False
        self._done = 0
        self._seconds: list[float] = []  # of the generations that this call trained from their first step

    def say(self, settings: Settings, training: Training) -> None:
        """Tell, before the first step, the time and disk space of all generations; warn if the disk is too small.

        Args:
            settings: of the first unfinished generation; the others are alike.
            training: the training of that generation.
        """
        if self._said:
            return
        self._said = True
        update, asked, rendering = of_batch = training.seconds_a_batch()
        manifest, train = Manifest.load(Path(settings.output.cache)), training.setup.settings
        plain = [
            split for name, split in manifest.splits.items() if name not in TRAINED and not name.startswith("ood/")
        ]
        others = sum(split.rows for split in plain)
        validated = manifest.splits["validation"].rows if "validation" in manifest.splits else 0
        views = len(training.feed.rows) * training.feed.order.views
        cached, batch = self.left - 1, train.batch_size  # the last one teaches nobody
        seconds = self.left * training_seconds(training, of_batch, validated)
        seconds += cached * (views + others) / batch * (asked + rendering)
        of_view = manifest.format_of(RecordKey("train", "", 0)).record.itemsize
        space = self.left * sum(training.sizes()) + cached * (
            views * of_view + others * manifest.format.record.itemsize
        )
        if manifest.pushed:  # a generation's own gradients move the inputs, which are stored
            pushed = next(iter(manifest.pushed.values()))
            seconds += cached * views / batch * update
            space += cached * views * pushed.format.record.itemsize
        what = f"{counted(self.left, 'generation')} of {counted(train.epochs, 'epoch')}"
        self.progress.note(f"{what}: about {duration(seconds)} and {bytes_told(space)}.")
        free = free_bytes(self.folder)
        if space > free:
            self.progress.warn(
                f"The disk of {self.folder} has {bytes_told(free)} left, and the chain fills about "
                f"{bytes_told(space)}. Make room, or set output.runs to another disk: an interrupted chain goes on."
            )

    def done(self, report: TrainReport) -> None:
        """Tell how long the rest will take, after a generation."""
        if not report.fresh:
            return
        self._done += 1
        left = self.left - self._done
        if report.resumed_at:  # its time is not that of a whole generation
            return
        self._seconds.append(report.seconds)
        if left:
            rest = left * sum(self._seconds) / len(self._seconds)
            self.progress.note(f"{report.folder.name} took {duration(report.seconds)}; about {duration(rest)} left.")
