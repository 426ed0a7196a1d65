"""The documents in `evaluations/` of a run or a chain, and which of them describe the current students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ensemble_distill.errors import EdistillError, first_line
from ensemble_distill.facts import MadeFrom
from ensemble_distill.runs.folder import EVALUATIONS, MADE_FROM
from ensemble_distill.runtime.files import sha256_file
from ensemble_distill.runtime.seals import read_sealed_json
from ensemble_distill.runtime.words import shell

SHIFTS = "shifts"  # subfolder with the documents of shifted rows
MAIN = ("test", "validation")  # splits whose documents come first
FIGURES_OF_ROWS = "figures_of_rows"  # key of a document: the sha256 of each .npz beside it, by name


def stale_evaluations(folder: Path, students: Mapping[str, MadeFrom]) -> tuple[Path, ...]:
    """The documents of a run or a chain that are damaged, or describe other students than the current ones.

    Args:
        students: the current students, by their names in the documents.
    """
    return tuple(file for file in _documents(folder) if not _is_of(file, students))


def evaluation_of(folder: Path, students: Mapping[str, MadeFrom]) -> dict[str, Any] | None:
    """The current document of a run or a chain: of test, else of validation, else of any split; None if there is
    none."""
    stale = stale_evaluations(folder, students)
    there = {file.stem: file for file in sorted((folder / EVALUATIONS).glob("*.json")) if file not in stale}
    names = [name for name in (*MAIN, *there) if name in there]
    if not names:
        return None
    found: dict[str, Any] = read_sealed_json(there[names[0]])[0]
    return found


def damaged_evaluations(folder: Path) -> list[str]:
    """A message for each document of a run or a chain that is damaged, or whose row figures are."""
    problems = []
    for file in _documents(folder):
        try:
            record, _ = read_sealed_json(file)
            rows = record.get(FIGURES_OF_ROWS, {}) if isinstance(record, dict) else {}
            if others := [name for name, digest in rows.items() if sha256_file(file.parent / name) != digest]:
                raise ValueError(f"{others[0]} beside it is of another evaluation")
        except (OSError, ValueError, AttributeError) as error:
            told = first_line(getattr(error, "strerror", None) or error)
            problems.append(f"{file} is damaged ({told}). Delete it, or run edistill evaluate {shell(folder)} again.")
    return problems


def _documents(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / EVALUATIONS).glob("*.json"))
    yield from sorted((folder / EVALUATIONS / SHIFTS).glob("*.json"))


def _is_of(document: Path, students: Mapping[str, MadeFrom]) -> bool:
    try:
        record, sealed = read_sealed_json(document)
        if not sealed:  # written by version 0.1.0, which did not record the student
            return True
        named = {name: MadeFrom.from_json(said) for name, said in record[MADE_FROM].items()}
        rows = record.get(FIGURES_OF_ROWS, {})
        return all(students.get(name) == said for name, said in named.items()) and all(
            sha256_file(document.parent / name) == digest for name, digest in rows.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EdistillError):
        return False
