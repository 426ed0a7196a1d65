"""`summary.csv`: the figures of each epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ensemble_distill.runs.folder import SUMMARY
from ensemble_distill.runtime import ranks
from ensemble_distill.runtime.files import write_text
from ensemble_distill.runtime.names import harmless_cell


@dataclass
class Summary:
    """The finished epochs, and the steps of the current one.

    Attributes:
        table: one row per epoch.
        losses: losses of the current epoch that have been read.
        watched: other figures of these steps, by name; see `Stage.watch`.
        seconds: what the current epoch took so far, of earlier processes too, without validation.
        latest: the last loss that was read.
        unread: losses and figures of later steps, still on the device: reading them waits for it.
    """

    table: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    watched: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    latest: float | None = None
    unread: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)

    def add(self, loss: Tensor, watched: Mapping[str, Tensor]) -> None:
        """Add a step's loss and figures, to be read later."""
        # copies: their memory may be reused in the next step
        figures = {name: figure.detach().clone() for name, figure in watched.items()}
        self.unread.append((loss.detach().clone(), figures))

    def read(self) -> list[float]:
        """Wait for the unread losses and figures, and return these losses."""
        own = [(float(loss), {name: f.item() for name, f in watched.items()}) for loss, watched in self.unread]
        steps = _of_all(ranks.of_each(own))
        losses = [loss for loss, _ in steps]
        self.losses += losses
        self.latest = losses[-1] if losses else self.latest
        for _, watched in steps:
            for name, value in watched.items():
                if not math.isnan(value):
                    self.watched.setdefault(name, []).append(value)
        self.unread.clear()
        return losses

    def end_epoch(self, before: Mapping[str, Any], behind: Mapping[str, Any]) -> None:
        """Close an epoch whose steps have all been read.

        Its row has the columns of `before`, the means over its steps, the columns of `behind`, and its seconds.
        """
        means = {name: sum(values) / len(values) for name, values in self.watched.items()}
        loss = sum(self.losses) / len(self.losses)
        self.table.append({**before, "train_loss": loss, **means, **behind, "seconds": round(self.seconds, 2)})
        self.seconds = 0.0
        self.losses.clear()
        self.watched.clear()

    def write(self, folder: Path) -> None:
        text = io.StringIO()
        # a resumed training may have gained or lost its validation rows
        columns = list(dict.fromkeys(column for row in self.table for column in row))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(harmless_cell, columns))  # a user's method may watch figures of any name
        writer.writerows([_cell(row.get(column)) for column in columns] for row in self.table)
        write_text(folder / SUMMARY, text.getvalue())

    def saved(self) -> dict[str, Any]:
        """The summary for a checkpoint, once all is read; for `restored`."""
        return {"table": self.table, "losses": self.losses, "watched": self.watched, "seconds": self.seconds}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Self:
        # a checkpoint may be older than `watched` and `seconds`
        return cls(saved["table"], saved["losses"], saved.get("watched", {}), saved.get("seconds", 0.0))


_Told = list[tuple[float, dict[str, float]]]  # for each step its loss, and figures by name


def _of_all(each: list[_Told]) -> _Told:
    """The means over ranks at each step; figures that are NaN do not count."""
    if len(each) == 1:
        return each[0]
    means = []
    for told in zip(*each, strict=True):
        figures = {}
        for name in told[0][1]:
            known = [value for _, figures_of in told if not math.isnan(value := figures_of[name])]
            figures[name] = sum(known) / len(known) if known else math.nan
        means.append((sum(loss for loss, _ in told) / len(told), figures))
    return means


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else harmless_cell(value)
