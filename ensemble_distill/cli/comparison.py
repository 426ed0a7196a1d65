"""The documents of `evaluate` as lines of one table: figures are rows, models are columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARED = ("ensemble", "member", "best-2", "best-3")  # models that runs of one ensemble have in common

Document = Mapping[str, Any]
Models = Mapping[str, Mapping[str, float | None] | None]  # model to figures


@dataclass(frozen=True)
class Line:
    """One figure of every model.

    Attributes:
        section: "fidelity", "quality", "uncertainty", "ood/NAME", "cost" or "shifts/NAME/SEVERITY".
        figure: as the document names it.
        values: a column each; None where the figure does not apply.
    """

    section: str
    figure: str
    values: tuple[float | None, ...]


class Comparison:
    """What `evaluate` found, of one run or of several.

    Attributes:
        runs: each one's own document.
        columns: the models: those that the runs share, then each run's student, by the run's name.
    """

    def __init__(self, document: Document) -> None:
        self.runs: Sequence[Document] = document.get("runs") or [document]
        self._shared = [name for name in SHARED if self.runs[0]["models"][name] is not None]
        self.columns = [*self._shared, *(run["run"] for run in self.runs)]

    def lines(self) -> Iterator[Line]:
        """Every figure; how near the students are is first."""
        for tables in zip(*(_tables(run) for run in self.runs), strict=True):
            section, first = tables[0]
            models = [first.get(name) for name in self._shared] + [table["student"] for _, table in tables]
            for figure in first["student"] or ():
                yield Line(section, figure, tuple(None if model is None else model[figure] for model in models))


def _tables(run: Document) -> Iterator[tuple[str, Models]]:
    """The sections of one run's document."""
    yield "fidelity", {"student": run["fidelity"], **run["subensemble_fidelity"]}
    for section, uncertain in (("quality", False), ("uncertainty", True)):
        yield section, {model: _only(figures, uncertain) for model, figures in run["models"].items()}
    for name, models in run["ood"].items():
        yield f"ood/{name}", models
    yield "cost", run["cost"]
    for shift, severities in (run["shifts"] or {}).items():
        for severity, models in severities.items():
            yield f"shifts/{shift}/{severity}", models


def _only(figures: Mapping[str, float | None] | None, uncertain: bool) -> Mapping[str, float | None] | None:
    if figures is None:
        return None
    return {name: value for name, value in figures.items() if name.endswith("_uncertainty") == uncertain}
