"""How long a chain will take and what it will fill, before its first step and after each generation."""

from __future__ import annotations

import shutil
from pathlib import Path

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.config import Settings
from ensemble_distill.runtime.durations import told
from ensemble_distill.runtime.progress import Progress
from ensemble_distill.training.loop import Training
from ensemble_distill.workflows.train import TrainReport


class Forecast:
    """Told from a few steps at first, then from the generations that are done.

    Args:
        folder: the chain's.
        left: how many generations are not finished.
    """

    def __init__(self, folder: Path, left: int, progress: Progress) -> None:
        self.folder, self.left, self.progress = folder, left, progress
        self._said = False
        self._seconds: list[float] = []

    def say(self, training: Training, settings: Settings) -> None:
        """Say, before the first step, how long all of it will take and what it will fill; warn where the disk is too
        small.

        Args:
            training: of the first unfinished generation, which the others are like.
            settings: that generation's.
        """
        if self._said:
            return
        self._said = True
        update, asked = training.seconds_a_batch()
        manifest, train = Manifest.load(Path(settings.output.cache)), settings.train
        validated = manifest.splits["validation"].rows if "validation" in manifest.splits else 0
        views = len(training.rows) * training.order.views
        cached, batch = self.left - 1, train.batch_size  # the last one teaches nobody
        seconds = self.left * (training.steps * update + train.epochs * validated / batch * asked)
        seconds += cached * (views + validated) / batch * asked
        space = self.left * sum(training.bytes()) + cached * (views + validated) * manifest.record.itemsize
        self.progress.note(
            f"{self.left} generation{'s' if self.left > 1 else ''} of {train.epochs} epochs: about {told(seconds)} and "
            f"{space / 1e6:,.1f} MB."
        )
        free = shutil.disk_usage(self.folder).free
        if space > free:
            self.progress.warn(
                f"The disk of {self.folder} has {free / 1e6:,.0f} MB left, and the chain fills about "
                f"{space / 1e6:,.0f} MB. Make room, or set output.runs to another disk: an interrupted chain goes on."
            )

    def done(self, report: TrainReport) -> None:
        """Say how long the rest will take, after a generation."""
        if not report.fresh:
            return
        self._seconds.append(report.seconds)
        left = self.left - len(self._seconds)
        if left:
            rest = left * sum(self._seconds) / len(self._seconds)
            self.progress.note(f"{report.folder.name} took {told(report.seconds)}; about {told(rest)} left.")
