"""`--log mlflow`: a run in MLflow, stored where MLflow is configured to (MLFLOW_TRACKING_URI)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from ensemble_distill.logs import LogPlace
from ensemble_distill.logs.known import keep_id, known_id

LONGEST = 500  # characters of a parameter that every version accepts


class LOG:
    """Logs to MLflow, which cannot take back what was logged: steps that it already has are skipped."""

    def __init__(self, place: LogPlace) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        self._place = place
        self._client: Any = None
        self._run = ""
        self._last = 0

    def begin(self, step: int) -> None:
        kept = self._place.folder / "mlflow.json"
        self._client = self._mlflow.MlflowClient()
        known = known_id(kept)
        if known is not None:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            self._last = max((metric.step for metric in self._client.get_metric_history(known, "loss")), default=0)
            return
        experiment = self._mlflow.set_experiment(self._place.project)
        made = self._client.create_run(experiment.experiment_id, run_name=self._place.name)
        self._run = made.info.run_id
        keep_id(kept, self._run)
        params = {key: str(value) for key, value in self._place.settings.items()}
        of = self._mlflow.entities.Param
        self._client.log_batch(self._run, params=[of(_name(key), value[:LONGEST]) for key, value in params.items()])

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        if step > self._last:
            now, of = int(time.time() * 1000), self._mlflow.entities.Metric
            self._client.log_batch(self._run, [of(_name(name), value, now, step) for name, value in figures.items()])

    def flush(self) -> None:
        """Does nothing: each call returns once its data is stored."""

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


def _name(name: str) -> str:
    """The name with each character that MLflow does not accept replaced by _."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
