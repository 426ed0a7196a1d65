"""Verifying every file of a run or a chain against its seals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.runs.args import read_args
from ensemble_distill.runs.chain import refuse_changed
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.runs.evaluations import damaged_evaluations
from ensemble_distill.runs.exports import exports_of, made_from
from ensemble_distill.runs.folder import ARGS, CONFIG, WEIGHTS, generation_name
from ensemble_distill.runs.run import Run


def run_problems(folder: Path) -> list[str]:
    """The problems with the files of a finished run, a message each with its remedy; empty if there are none."""
    return [*_said(partial(read_args, folder)), *_said(lambda: Run.open(folder).calibration), *_made_of(folder)]


def chain_problems(folder: Path) -> tuple[list[str], list[str]]:
    """The problems with the files of a chain and its generations, and the names of the unfinished generations."""
    problems, unfinished = _said(partial(read_args, folder)), []
    problems += damaged_evaluations(folder)
    for generation in generations(folder):
        there = folder / generation_name(generation)
        if not (there / WEIGHTS).is_file():
            unfinished.append(there.name)
            continue
        problems += run_problems(there)
        problems += _said(partial(_refuse_other_teacher, folder, generation))
    return problems, unfinished


def generations(folder: Path) -> list[int]:
    """The numbers of the generations in a chain's folder, begun or finished, in order."""
    named = [path.parent.name.rpartition("-")[2] for path in folder.glob(f"{generation_name('*')}/{ARGS}")]
    return sorted(int(number) for number in named if number.isdecimal())


def _refuse_other_teacher(folder: Path, generation: int) -> None:
    """Raise EdistillError if a generation learned from another student than the one before it."""
    there, before = (folder / generation_name(number) for number in (generation, generation - 1))
    if generation == 1 or not (there / CONFIG).is_file():
        return
    if not (before / WEIGHTS).is_file():
        raise EdistillError(f"{there} is finished, and {before}, which it learned from, is not there. Put it back.")
    refuse_changed(Run.open(before), there, StudentConfig.load(there))


def _made_of(folder: Path) -> Iterator[str]:
    """The problems with files made from a run: exported files and evaluations."""
    for export in exports_of(folder):
        yield from _said(partial(made_from, export))
    yield from damaged_evaluations(folder)


def _said(ask: Callable[[], object]) -> list[str]:
    try:
        ask()
    except EdistillError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename} cannot be read: {first_line(error.strerror or error)}. Make it readable."]
    return []
