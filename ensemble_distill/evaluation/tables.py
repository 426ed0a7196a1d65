"""An evaluation as tables of text, which the command prints and a report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemble_distill.evaluation.comparison import Comparison, Line
from ensemble_distill.evaluation.names import CONTROLS, ENSEMBLE, FIDELITY, MEMBER, STUDENT
from ensemble_distill.evaluation.remarks import cautions
from ensemble_distill.evaluation.result import Evaluation
from ensemble_distill.runtime.numbers import number, short

Sections = Mapping[str, Sequence[Sequence[str]]]  # title to rows, which begin with their label

WORTH = "worth, in members"  # the title of a section
FEW = 4  # the most targets or labels whose own figures are in the table

APART = ("shifts", "kept", "conformal")  # sections with tables of their own

# for a single run, these are in the columns of the controls
TOLD_BY_CONTROLS = ("model_uncertainty_spearman_control", "collapsed_kl", "uncertainty_control")
LABELS = {
    "macs": "multiply-accumulates",
    "latency_ms": "latency, one thread (ms)",
    "prediction": "in prediction",
    "fidelity": "in fidelity",
    "uncertainty": "in uncertainty",
    "uncertainty_control": "in uncertainty, control",
    "cost_latency": "costs in latency",
    "cost_macs": "costs in multiply-accumulates",
    "cost_parameters": "costs in parameters",
}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: the table's title.
        columns: the headings; the first one is that of the labels.
        sections: the rows.
        caption: the lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    sections: Sections
    caption: tuple[str, ...] = ()


def tables(found: Comparison) -> list[Table]:
    """How near the students are, each model's own figures, selective and conformal predictions, and shifts, if any."""
    near, alone = _sections(found)
    headings = [name.replace("_", " ") if name in found.controls else _heading(found, name) for name in found.near]
    columns = [_heading(found, name) for name in found.columns]
    made = [
        Table(title(found), ("", *headings), near, tuple(_caption_near(found))),
        Table("each model by itself", ("", *columns), alone, tuple(_caption(found))),
    ]
    made += [table for run in found.runs for table in _selective(run)]
    if found.runs[0].shifts is not None:
        made.append(Table("under shifts", ("shift, severity", *columns), _shifted(found)))
    return made


def _heading(found: Comparison, model: str) -> str:
    """The heading of a model's column."""
    return "teacher" if model == ENSEMBLE and found.of_one_teacher else model


def title(found: Comparison) -> str:
    first = found.runs[0]
    rows = f"on {first.rows:,} {first.task.answers_called} of {first.split}"
    if len(found.runs) > 1:
        return f"{len(found.runs)} runs {rows}"
    explained = first.fidelity["diversity_explained"]
    headline = _worth(first)
    if explained is not None and explained >= 0:
        of_them = f"{explained:.0%} of the members' diversity explained"
        headline.append(f"explains {explained:.0%} of their diversity" if headline else of_them)
    return f"{first.run} {rows}" + (": " + ", ".join(headline) if headline else "")


def _worth(run: Evaluation) -> list[str]:
    """The worth and the cost of a run's student, in words."""
    student = run.worth and run.worth[STUDENT]
    if not student or run.ladder is None:
        return []
    told = student.told(len(run.ladder.mean_kl))
    found = [f"worth {told}"] if told else []
    return found if math.isnan(student.cost_in_members) else [*found, f"costs {student.cost_in_members:.1f} in latency"]


def _sections(found: Comparison) -> tuple[Sections, Sections]:
    """The sections on worth and fidelity, and all others without tables of their own; empty figures are left out."""
    sections: dict[str, list[list[str]]] = {}
    for line in found.lines():
        kind, _, name = line.section.partition("/")
        repeated = len(found.runs) == 1 and line.figure in TOLD_BY_CONTROLS
        if line.figure.partition(".")[2] and len(found.task.names) > FEW:
            continue
        if kind not in APART and not repeated and any(value is not None for value in line.values):
            title = {
                "worth": WORTH,
                "uncertainty": f"uncertainty ({found.task.uncertainty_unit})",
                "ood": f"out of distribution: {name} (AUROC)",
                "cost": "cost of one row",
            }.get(kind, kind)
            label = LABELS.get(line.figure, line.figure.replace("_", " "))
            sections.setdefault(title, []).append([f"by {label}" if kind == "ood" else label, *_cells(line)])
    near = [title for title in (WORTH, "fidelity") if title in sections]
    return {title: sections.pop(title) for title in near}, sections


def _shifted(found: Comparison) -> dict[str, list[list[str]]]:
    """A section for each figure, with a row for the unshifted rows, and one for each shift and severity.

    Figures that the task does not show here are in CSV and JSON.
    """
    sections: dict[str, list[list[str]]] = {figure: [] for figure in found.task.shifted_shown}
    levels = found.runs[0].shift_levels or {}
    for line in found.lines():
        kind, *at = line.section.split("/")
        if line.figure not in sections or kind not in ("quality", "uncertainty", "shifts"):
            continue
        label = "none"
        if kind == "shifts":
            shift, severity = at
            label = f"{shift} {severity} ({levels[shift][int(severity) - 1]})"
        sections[line.figure].append([label, *_cells(line)])
    return {figure.replace("_", " "): rows for figure, rows in sections.items() if rows}


def _selective(run: Evaluation) -> list[Table]:
    """The tables of one student's selective and conformal predictions."""
    found = run.selective
    if found is None:
        return []
    by, called = found.by.replace("_", " "), run.task.answers_called
    figures = list(found.kept[0].figures or ())
    kept = [
        [
            "all" if one.threshold is None else f"{one.coverage:.0%}",
            number(one.threshold),
            f"{one.share:.1%}",
            *(number(one.figures[name] if one.figures else None) for name in figures),
        ]
        for one in found.kept
    ]
    of = f"{found.rows:,} {called} of calibration"
    titles = [name.replace("_", " ") for name in figures]
    fitted = ("calibrate may have been fitted on the same rows, without their labels.",) if run.calibrated else ()
    made = [
        Table(
            f"{run.run}, the least uncertain {called}",
            ("", "up to", f"of {run.split}", *titles),
            {f"kept by {by}, of {of}": kept},
            ("up to: the threshold. predict --coverage 0.9 marks what is above that of 90 %.",),
        )
    ]
    if found.covered is not None and run.task.conformal is not None:
        rows = [
            [f"{one.alpha:g}", f"{1 - one.alpha:.1%}", f"{one.coverage:.1%}", number(one.size)] for one in found.covered
        ]
        made.append(
            Table(
                f"{run.run}, conformal predictions",
                ("", "at least", f"truth inside, {run.split}", run.task.conformal.size),
                {f"alpha, by {of}": rows},
                ("predict --alpha 0.1 writes predictions that miss the truth for at most 10 % of rows.", *fitted),
            )
        )
    return made


def _cells(line: Line) -> list[str]:
    if line.figure in ("parameters", "macs"):
        return [short(value) for value in line.values]
    if line.section == "worth":
        return ["–" if value is None else f"{value:.1f}" for value in line.values]
    cells = [number(value) for value in line.values]
    if line.section == "fidelity":
        perfect = FIDELITY[line.figure]
        cells[0] = cells[0] if perfect is None else str(perfect)
    return cells


def _caption_near(found: Comparison) -> list[str]:
    told = [f"{_heading(found, ENSEMBLE)}: what a perfect student gets."]
    if found.runs[0].ladder is not None:
        told.append(
            "worth: how many members it takes to do as well, on average over sub-ensembles: by NLL, by mean KL, and by "
            "the l1 of the model uncertainty, scaled to the right mean."
        )
    told += cautions(found.runs)
    told += [f"{name.replace('_', ' ')}: {CONTROLS[name]}" for name in found.controls]
    if len(found.runs) > 1 and any(run.fidelity["model_uncertainty_spearman"] is not None for run in found.runs):
        told.append("Control for the Spearman correlation: what the student's total uncertainty alone reaches.")
    return told


def _caption(found: Comparison) -> list[str]:
    first = found.runs[0]
    told = ["member: the mean of the members' own figures."] if MEMBER in found.columns else []
    if found.chain:
        told.append("bane-k: the ensemble of the first k generations.")
    if len(found.task.names) > FEW and any("." in line.figure for line in found.lines()):
        told.append(f"Uncertainties of each of the {found.task.told}: --format csv or json.")
    parts = [f"{name}: {' + '.join(names)}" for name, names in first.subensembles.items() if names is not None]
    if parts:
        told.append(f"{'; '.join(parts)}: chosen among sub-ensembles of that size by NLL on the validation rows.")
    students = [run.models[STUDENT] for run in found.runs]
    if any(student is not None and student["model_uncertainty"] is None for student in students):
        told.append("A single head cannot tell data from model uncertainty: what it calls data is the total.")
    return told
