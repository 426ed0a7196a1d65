"""The documents of `evaluate` as lines of one table: figures are rows, models are columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTROLS = ("collapsed", "offsets", "total_uncertainty", "halves")  # what fidelity figures are to be compared with
SHARED = ("ensemble", "member", "best-2", "best-3")  # models that runs of one ensemble have in common

Document = Mapping[str, Any]
Models = Mapping[str, Mapping[str, float | None] | None]  # model to figures


@dataclass(frozen=True)
class Line:
    """One figure of every model.

    Attributes:
        section: "fidelity", "quality", "uncertainty", "ood/NAME", "cost" or "shifts/NAME/SEVERITY".
        figure: as the document names it.
        models: a column each.
        values: one for each model; None where the figure does not apply.
    """

    section: str
    figure: str
    models: tuple[str, ...]
    values: tuple[float | None, ...]


class Comparison:
    """What `evaluate` found, of one run or of several.

    Attributes:
        runs: each one's own document.
        columns: the models: those that the runs share, then each run's student, by the run's name; of a chain its
            generations and their averages.
        controls: those that stand beside the fidelity figures: all that say something of a single run; of several, what
            the halves of their ensemble get.
        headings: what a column is called in a table where that is not its model's name.
        near: the columns of fidelity: the models but the mean member, and the controls. Those are behind a single run,
            and before several.
    """

    def __init__(self, document: Document) -> None:
        self.runs: Sequence[Document] = document.get("runs") or [document]
        self._shared = [name for name in SHARED if self.runs[0]["models"][name] is not None]
        self.in_chain = list(self.runs[0]["chain_fidelity"] or ())
        alone = self.runs[0]["models"]["ensemble"]["model_uncertainty"] is None
        if alone and "member" in self._shared:  # one teacher, which is its own mean member
            self._shared.remove("member")
        self.headings = {"ensemble": "teacher"} if alone else {}
        students = self.in_chain or [run["run"] for run in self.runs]
        self.columns = [*self._shared, *students]
        found = self.runs[0]["fidelity_controls"]
        told = [name for name in CONTROLS if any(value is not None for value in found[name].values())]
        self.controls = told if len(self.runs) == 1 else [name for name in told if name == "halves"]
        ensemble, *parts = [name for name in self._shared if name != "member"]
        self._before, self._behind = [ensemble, *self.controls, *parts], []
        if len(self.runs) == 1:
            self._before, self._behind = [ensemble, *parts], self.controls
        self.near = [*self._before, *students, *self._behind]

    def lines(self) -> Iterator[Line]:
        """Every figure; how near the students are is first."""
        for tables in zip(*(_tables(run) for run in self.runs), strict=True):
            section, first = tables[0]
            near = section == "fidelity"
            before, behind = (self._before, self._behind) if near else (self._shared, [])
            students = [first[name] for name in self.in_chain] or [table["student"] for _, table in tables]
            models = [*map(first.get, before), *students, *map(first.get, behind)]
            for figure in first["student"] or ():
                values = tuple(None if model is None else model[figure] for model in models)
                yield Line(section, figure, tuple(self.near if near else self.columns), values)


def _tables(run: Document) -> Iterator[tuple[str, Models]]:
    """The sections of one run's document."""
    parts = {**run["subensemble_fidelity"], **(run["chain_fidelity"] or {})}
    yield "fidelity", {"student": run["fidelity"], **parts, **run["fidelity_controls"]}
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
