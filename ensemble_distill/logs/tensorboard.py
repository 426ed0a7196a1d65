"""`--log tensorboard`: event files in RUN/logs/tensorboard, by torch's writer and the package tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble_distill.logs import LogPlace
from ensemble_distill.runtime.files import make_folder

NAME = "tensorboard"


class LOG:
    """Writes event files; the first event of a new one purges what a killed training logged after its checkpoint."""

    def __init__(self, place: LogPlace) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make: Any = SummaryWriter
        self._folder = place.folder / NAME
        self._writer: Any = None

    def begin(self, step: int) -> None:
        purge = step + 1 if self._folder.exists() else None
        make_folder(self._folder)
        self._writer = self._make(str(self._folder), purge_step=purge)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()
