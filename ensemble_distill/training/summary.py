"""`summary.csv`: what a training tells of each epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ensemble_distill.runs.folder import SUMMARY
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.names import harmless_cell


@dataclass
class Summary:
    """The epochs that are done, and the steps of the one that is not.

    Attributes:
        table: a row an epoch.
        losses: of the epoch's steps so far.
        watched: what else is told of those steps, by name; see `Stage.watch`.
    """

    table: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    watched: dict[str, list[float]] = field(default_factory=dict)

    def add(self, loss: float, watched: Mapping[str, Tensor]) -> None:
        """A step's loss and figures."""
        self.losses.append(loss)
        for name, figure in watched.items():
            self.watched.setdefault(name, []).append(figure.item())

    def end_epoch(self, before: Mapping[str, Any], behind: Mapping[str, Any]) -> None:
        """Close the epoch: its row has the means over its steps between two other groups of columns."""
        means = {name: sum(values) / len(values) for name, values in self.watched.items()}
        loss = sum(self.losses) / len(self.losses)
        self.table.append({**before, "train_loss": loss, **means, **behind})
        self.losses.clear()
        self.watched.clear()

    def write(self, folder: Path) -> None:
        text = io.StringIO()
        # a continuation may have gained or lost its validation rows
        columns = list(dict.fromkeys(column for row in self.table for column in row))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(harmless_cell, columns))  # what a user's method watches has any name
        writer.writerows([_cell(row.get(column)) for column in columns] for row in self.table)
        write_text(folder / SUMMARY, text.getvalue())

    def saved(self) -> dict[str, Any]:
        """For a checkpoint; `restored` reads it."""
        return {"table": self.table, "losses": self.losses, "watched": self.watched}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Self:
        return cls(
            saved["table"], saved["losses"], saved.get("watched", {})
        )  # a checkpoint may be older than `watched`


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else harmless_cell(value)
