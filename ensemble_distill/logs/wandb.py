"""`--log wandb`: a run in Weights & Biases, stored where it is configured to (`wandb login`, WANDB_MODE=offline)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ensemble_distill.logs import LogPlace
from ensemble_distill.logs.known import keep_id, known_id
from ensemble_distill.runtime.files import make_folder


class LOG:
    """Logs to Weights & Biases, which cannot take back what was logged: steps that it already has are skipped."""

    def __init__(self, place: LogPlace) -> None:
        import wandb

        self._wandb: Any = wandb
        self._place = place
        self._run: Any = None
        self._next = 0

    def begin(self, step: int) -> None:
        kept = self._place.folder / "wandb.json"
        name = known_id(kept) or secrets.token_hex(8)
        make_folder(self._place.folder)
        self._run = self._wandb.init(
            project=self._place.project,
            name=self._place.name,
            id=name,
            resume="allow",
            dir=str(self._place.folder),
            config=dict(self._place.settings),
        )
        self._next = self._run.step
        keep_id(kept, name)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._next:
            self._run.log(dict(figures), step=step)

    def flush(self) -> None:
        """Does nothing: wandb writes in its own process."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
