"""The command `edistill compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemble_distill.cli import completing, render
from ensemble_distill.cli.command import command
from ensemble_distill.cli.flags import AlsoJson, Format, Split, Style, Trust, refuse_two_formats
from ensemble_distill.evaluation.paired import ROWS, Difference
from ensemble_distill.evaluation.remarks import cautions, remarks
from ensemble_distill.evaluation.tables import LABELS, TOLD_BY_CONTROLS, WORTH, Sections
from ensemble_distill.settings import Settings

if TYPE_CHECKING:
    from ensemble_distill.evaluation.compared import Compared, Side

TITLES = {"worth": WORTH, "quality": "quality and uncertainty"}
NOT_CLEAR = "n.s."
SHOWN = 5e-5  # below which four decimals show 0
BESIDE = 2  # runs per table, to fit a terminal; more go to further tables


def register(app: typer.Typer) -> None:
    @command(app, "compare", ["train.device", "train.workers", "limit"])
    def compare(
        settings: Settings,
        runs: Annotated[
            list[str],
            typer.Argument(
                metavar="RUN",
                help="Runs of one ensemble, by folder or name, or exported files.",
                autocompletion=completing.runs,
            ),
        ],
        split: Split = None,
        picture: Annotated[
            Path | None, typer.Option(help="Plot worth against cost to this .svg, .png or .pdf.", show_default=False)
        ] = None,
        trust: Trust = False,
        style: Format = Style.table,
        json: AlsoJson = False,
    ) -> None:
        """Compare runs with the first one, with 95 % intervals of the differences.

        Runs that differ in their seed alone stand together, as means.

        Example: edistill compare kd-s0 hydra-s0 hydra-s1 --picture worth.svg
        """
        from ensemble_distill.workflows import compare as workflow

        refuse_two_formats(json, style, Style.table)
        with render.Shown() as progress:
            found = workflow.compare(settings, runs, split=split, picture=picture, trust=trust, progress=progress)
        if json or style is Style.json:
            render.document(found.to_json())
        else:
            show(found, style)
            for run in found.evaluations if style is not Style.csv else ():
                for remark in remarks(run):
                    render.message(remark)
        if picture is not None:
            render.message(f"{picture} is written.")


def show(found: Compared, style: Style) -> None:
    """Show each run's figures, and the differences of the others from the first."""
    if style is Style.csv:
        heading = ("section", "figure", "run", "value", "spread", "difference", "low", "high")
        render.csv(heading, list(_cells(found)))
        return
    grid = render.markdown if style is Style.markdown else render.grid
    first, *others = found.sides
    title = f"{len(others) + 1} students on {found.rows:,} {found.task.answers_called} of {found.split}"
    most = BESIDE if style is Style.table else len(others)
    for start in range(0, len(others), most):
        some = others[start : start + most]
        less = f"less {first.name}, 95 %" if found.draws else f"less {first.name}"
        headings = [first.name, *(head for side in some for head in (side.name, less))]
        last = start + most >= len(others)
        grid(title, ["", *headings], _sections(found, some), _caption(found) if last else ())


def _keys(found: Compared) -> Iterator[tuple[str, str]]:
    """Yield the section and name of each figure that some run has."""
    for section, figures in found.sides[0].figures.items():
        for key in figures:
            told = key not in TOLD_BY_CONTROLS and "." not in key
            if told and any(side.figures[section].get(key) is not None for side in found.sides):
                yield section, key


def _sections(found: Compared, others: Sequence[Side]) -> Sections:
    first = found.sides[0]
    sections: dict[str, list[list[str]]] = {}
    for section, key in _keys(found):
        cells = [_value(first, section, key)]
        for side in others:
            apart = found.apart[side.name].get(key) if section != "worth" else None
            cells += [_value(side, section, key), "–" if apart is None else _difference(apart)]
        label = LABELS.get(key) if section == "worth" else None
        sections.setdefault(TITLES.get(section, section), []).append([label or key.replace("_", " "), *cells])
    return sections


def _value(side: Side, section: str, key: str) -> str:
    value, spread = side.figures[section].get(key), side.spread[section].get(key)
    if value is None:
        return "–"
    digits = 1 if section == "worth" else 4
    return f"{value:.{digits}f}" if spread is None else f"{value:.{digits}f} ± {spread:.{digits}f}"


def _difference(of: Difference) -> str:
    """A difference with enough digits that a significant one is not shown as 0."""
    if of.low is None or of.high is None:
        return f"{of.value:+.4f}"
    ends = (of.value, of.low, of.high)
    digits = ".1e" if of.clear and min(map(abs, ends)) < SHOWN else ".4f"
    value, low, high = (f"{end:+{digits}}" for end in ends)
    told = f"{value} [{low}, {high}]"
    return told if of.clear else f"{told} {NOT_CLEAR}"


def _caption(found: Compared) -> render.Lines:
    told = [
        f"[low, high]: 95 % bootstrap interval of the difference ({found.draws:,} resamples of the rows, the same for "
        f"all). {NOT_CLEAR}: not significant, 0 is within it."
        if found.draws
        else f"Differences on fewer than {ROWS} rows have no interval: so few rows say nothing about others.",
    ]
    if found.one_student:
        told.append(
            f"The student of {found.sides[0].name} in another file, where what differs is rounding: "
            f"{', '.join(found.one_student)}."
        )
    several = [side for side in found.sides if len(side.runs) > 1]
    if several:
        seeds = "; ".join(f"{side.name}: {', '.join(side.runs)}" for side in several)
        told.append(f"±: the standard deviation over seeds ({seeds}); differences are of their means.")
    told += cautions(found.evaluations)
    if any(len(side.runs) == 1 for side in found.sides):
        told.append("One run says nothing about other seeds: train several, and name them all.")
    return told


def _cells(found: Compared) -> Iterator[tuple[object, ...]]:
    for section, key in _keys(found):
        for side in found.sides:
            of = found.apart.get(side.name, {}).get(key) if section != "worth" else None
            apart = (None, None, None) if of is None else (of.value, of.low, of.high)
            yield section, key, side.name, side.figures[section].get(key), side.spread[section].get(key), *apart
