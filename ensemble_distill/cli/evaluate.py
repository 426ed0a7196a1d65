"""`edistill evaluate`"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from ensemble_distill.cli import render
from ensemble_distill.cli.command import Trust, command
from ensemble_distill.evaluation.comparison import Comparison, Line
from ensemble_distill.evaluation.names import CONTROLS, ENSEMBLE, FIDELITY, MEMBER, STUDENT
from ensemble_distill.evaluation.result import Answering, Evaluation
from ensemble_distill.settings import Settings

COLLAPSED = 0.1  # of the diversity explained; a student collapsed to its own mean has 0

FEW = 4  # targets or labels whose own figures stand in the table

# of a single run these stand in the columns of the controls
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


class Style(StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


def register(app: typer.Typer) -> None:
    @command(app, "evaluate", ["train.device", "train.workers", "limit"])
    def evaluate(
        settings: Settings,
        runs: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="RUN",
                help="Runs of one ensemble, or a chain, by folder or name; the latest by default.",
                show_default=False,
            ),
        ] = None,
        split: Annotated[
            str | None,
            typer.Option(help="Which rows; default test, or validation where there is none.", show_default=False),
        ] = None,
        shifts: Annotated[
            bool, typer.Option("--shifts", help="Evaluate on distorted rows too; the teachers are asked about them.")
        ] = False,
        trust: Trust = False,
        style: Annotated[Style, typer.Option("--format", help="How the result is written.")] = Style.table,
        json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    ) -> None:
        """Compare a run with its ensemble: quality, uncertainty, diversity, OOD detection, cost.

        Several runs of one ensemble stand side by side, and so do the generations of a chain.

        Example: edistill evaluate kd-s0 hydra-s0 --format markdown
        """
        from ensemble_distill.workflows import evaluate as workflow

        with render.Shown() as progress:
            if runs is None or len(runs) < 2:
                run = runs[0] if runs else None
                one = workflow.evaluate(settings, run, split=split, shifts=shifts, trust=trust, progress=progress)
                found, document = Comparison((one,)), one.to_json
            else:
                found = workflow.evaluate_together(
                    settings, runs, split=split, shifts=shifts, trust=trust, progress=progress
                )
                document = found.to_json
        if json or style is Style.json:
            render.document(document())
        else:
            show(found, style)


def show(found: Comparison, style: Style) -> None:
    """A table of how near the students are, one of each model by itself, and one of the shifts."""
    if style is Style.csv:
        cells = [
            (line.section, line.figure, model, value)
            for line in found.lines()
            for model, value in zip(line.models, line.values, strict=True)
        ]
        render.csv(("section", "figure", "model", "value"), cells)
        return
    grid = render.markdown if style is Style.markdown else render.grid
    near, alone = _sections(found)
    headings = [name.replace("_", " ") if name in found.controls else _heading(found, name) for name in found.near]
    columns = [_heading(found, name) for name in found.columns]
    grid(_title(found), ["", *headings], near, _caption_near(found))
    grid("each model by itself", ["", *columns], alone, _caption(found))
    if found.runs[0].shifts is not None:
        grid("under shifts", ["shift, severity", *columns], _shifted(found))
    for run in found.runs:
        _tell(run, in_chain=bool(found.chain))


def _heading(found: Comparison, model: str) -> str:
    """What the column of a model is called."""
    return "teacher" if model == ENSEMBLE and found.of_one_teacher else model


def _tell(run: Evaluation, in_chain: bool) -> None:
    """What a reader of the tables should know of a run: that it is calibrated, or that its heads are worth little."""
    if run.answering is not None:
        for line in _who_answers(run.answering, run.split):
            render.message(line)
    if run.calibrated:
        which = "GENERATION" if in_chain else run.run
        render.message(f"{run.run} is calibrated; edistill calibrate {which} --remove takes that away.")
    student = run.worth and run.worth[STUDENT]
    if student and student.falls_short:
        render.message(
            f"{run.run} takes as long as {student.cost_in_members:.1f} members and is worth fewer in "
            f"{' and in '.join(student.falls_short)}: serve some members instead"
            + (f", the best of them by NLL on the validation rows: {' + '.join(run.instead)}." if run.instead else ".")
        )
    if (slower := _slower_than_all(run)) is not None:
        own, whole = slower
        render.message(
            f"One row takes {run.run} {own:.3g} ms, and all members together {whole:.3g} ms: of networks this small "
            "the calls cost more than the arithmetic. If one row's time is what counts, serve the ensemble "
            "(edistill export --ensemble --onnx)."
        )
    explained = run.fidelity["diversity_explained"]
    if explained is not None and explained < 0:
        render.message(
            f"The heads of {run.run} are farther from their members than the heads' own mean is: what they "
            "disagree about is not what the members do. Where they were trained, more epochs or a smaller learning "
            "rate help; where they start from members (student.init), another last stage, a higher rank, or all of "
            "the members compressed."
        )
    elif explained is not None and explained < COLLAPSED:
        render.message(
            f"The heads of {run.run} say nearly the same: they explain {explained:.0%} of the members' "
            "diversity, so this student's model uncertainty stands for little. A start from several members "
            "or more of them (student.init) helps most, then stronger views and more epochs."
        )


def _who_answers(found: Answering, split: str) -> Iterator[str]:
    """Which rows a table is about, where members do not answer all."""
    if found.unanswered:
        yield f"No member answers {found.unanswered:,} more rows of {split}: they are left out."
    if found.most == 1 < found.members:
        yield (
            f"One of the {found.members} members answers each row of {split}. How near a head is to its own member is "
            "measured on that member's rows; how members differ on one row is not, so there is no model uncertainty of "
            "theirs to compare with, and no worth."
        )
    elif found.least < found.members:
        some = f"{found.least} to {found.most}" if found.least < found.most else str(found.least)
        alone = " Model uncertainty is compared on the rows that several answer." if found.least == 1 else ""
        yield (
            f"Of the {found.members} members {some} answer a row of {split}: its ensemble is those who do, and they "
            f"are compared with their own heads.{alone}"
        )


def _slower_than_all(run: Evaluation) -> tuple[float, float] | None:
    """Milliseconds of the student and of its ensemble, as that runs fastest, where the student is no faster."""
    student, ensemble = run.cost[STUDENT], run.cost[ENSEMBLE]
    own, whole = student and student["latency_ms"], ensemble and ensemble["latency_ms"]
    return None if not own or not whole or own < whole else (own, whole)


def _title(found: Comparison) -> str:
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
    """What a run's student is worth and what it costs, in words."""
    student = run.worth and run.worth[STUDENT]
    if not student or run.ladder is None:
        return []
    told: list[str] = []
    of = f" of {len(run.ladder.mean_kl)} members"
    for name, value in (("prediction", student.prediction), ("uncertainty", student.uncertainty)):
        if value is not None:
            told.append(f"{_members(value, name in student.beyond)}{'' if told else of} in {name}")
    found = [f"worth {' and '.join(told)}"] if told else []
    return found if math.isnan(student.cost_in_members) else [*found, f"costs {student.cost_in_members:.1f} in latency"]


def _members(count: float, beyond: bool) -> str:
    return f"more than {count:.0f}" if beyond else f"{count:.1f}"


def _sections(found: Comparison) -> tuple[render.Sections, render.Sections]:
    """Fidelity, and all else but the shifts; figures that apply to no model are left out."""
    sections: dict[str, list[list[str]]] = {}
    for line in found.lines():
        kind, _, name = line.section.partition("/")
        repeated = len(found.runs) == 1 and line.figure in TOLD_BY_CONTROLS
        if line.figure.partition(".")[2] and len(found.task.names) > FEW:
            continue
        if kind != "shifts" and not repeated and any(value is not None for value in line.values):
            title = {
                "worth": "worth, in members",
                "uncertainty": f"uncertainty ({found.task.uncertainty_unit})",
                "ood": f"out of distribution: {name} (AUROC)",
                "cost": "cost of one row",
            }.get(kind, kind)
            label = LABELS.get(line.figure, line.figure.replace("_", " "))
            sections.setdefault(title, []).append([f"by {label}" if kind == "ood" else label, *_cells(line)])
    near = [title for title in ("worth, in members", "fidelity") if title in sections]
    return {title: sections.pop(title) for title in near}, sections


def _shifted(found: Comparison) -> dict[str, list[list[str]]]:
    """A section for each figure, with a row for each shift and severity, below that of the rows as they are. The
    figures that the task does not show there are in csv and json."""
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


def _cells(line: Line) -> list[str]:
    if line.figure in ("parameters", "macs"):
        return [render.short(value) for value in line.values]
    if line.section == "worth":
        return ["–" if value is None else f"{value:.1f}" for value in line.values]
    cells = [render.number(value) for value in line.values]
    if line.section == "fidelity":
        perfect = FIDELITY[line.figure]
        cells[0] = cells[0] if perfect is None else str(perfect)
    return cells


def _caption_near(found: Comparison) -> render.Lines:
    told = [f"{_heading(found, ENSEMBLE)}: what a perfect student gets."]
    if found.runs[0].ladder is not None:
        told.append(
            "worth: how many members do as well, on average over sub-ensembles: by NLL, by mean KL, and by the l1 of "
            "the model uncertainty once its mean is right."
        )
    told += [
        f"{run.run} ended before its loss did: {run.still_falling:.0%} of the fall came in the second half of its last "
        "stage. More epochs would change its figures."
        for run in found.runs
        if run.still_falling is not None
    ]
    told += [f"{name.replace('_', ' ')}: {CONTROLS[name]}" for name in found.controls]
    if len(found.runs) > 1 and any(run.fidelity["model_uncertainty_spearman"] is not None for run in found.runs):
        told.append("Control for the Spearman: what the student's total uncertainty alone reaches.")
    return told


def _caption(found: Comparison) -> render.Lines:
    first = found.runs[0]
    told = ["member: the mean over members of each one's own."] if MEMBER in found.columns else []
    if found.chain:
        told.append("bane-k: the average of what the first k generations predict, an ensemble like any other.")
    if len(found.task.names) > FEW and any("." in line.figure for line in found.lines()):
        told.append(f"Uncertainties of each of the {found.task.told}: --format csv or json.")
    parts = [f"{name}: {' + '.join(names)}" for name, names in first.subensembles.items() if names is not None]
    if parts:
        told.append(f"{'; '.join(parts)}: chosen among ensembles as small by their NLL on the validation rows.")
    students = [run.models[STUDENT] for run in found.runs]
    if any(student is not None and student["model_uncertainty"] is None for student in students):
        told.append("A single head cannot tell data from model uncertainty: what it calls data is the total.")
    return told
