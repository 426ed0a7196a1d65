"""Rebuilding a student from the bytes of its weights, those of a run or of an exported file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ensemble_distill.errors import EdistillError
from ensemble_distill.runs.config import StudentConfig
from ensemble_distill.students.bodies import BodyFactory
from ensemble_distill.students.same_function import answers_to, change, fixed_input
from ensemble_distill.students.student import Student


def rebuilt(
    config: StudentConfig,
    content: bytes,
    file: Path,
    body: BodyFactory | None,
    named: str,
    damaged: Callable[[Exception], EdistillError],
    otherwise: str,
) -> Student:
    """The trained student in eval mode, on the CPU.

    Args:
        content: the bytes of the weights file.
        file: its path, for messages.
        config: its architecture, and what it returned for a fixed input.
        body: the factory of the body; None for the one that the architecture names.
        named: what makes the body, for messages.
        damaged: makes the error for damaged weights.
        otherwise: a sentence that says what to do if the weights do not fit the body.

    Raises:
        EdistillError: the weights are damaged, or do not fit the body; or its code is not the one they were trained in.
    """
    what = config.architecture
    try:
        saved = load(content)
        what.refuse_larger_than(sum(tensor.numel() for tensor in saved.values()))
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(error) from None
    student = what.build(body)
    unlike = misfit(saved, student.state_dict())
    if unlike is not None:
        raise EdistillError(f"{file} does not fit the body {named} with {dict(what.kwargs)}: {unlike}. {otherwise}")
    student.load_state_dict(saved)
    _refuse_other_answers(student.eval(), config, f"{file} does not fit the body {named}", otherwise)
    return student


def _refuse_other_answers(student: Student, config: StudentConfig, told: str, otherwise: str) -> None:
    """Raise EdistillError for a student that is no longer the function that was trained."""
    before = config.provenance.answers
    now = None if before is None else answers_to(student, fixed_input(config.architecture))
    if before is not None and now is not None and (apart := change(before, now)) is not None:
        raise EdistillError(
            f"{told}: for the same input the student returned {apart[0]:.4g} after its training, and now returns "
            f"{apart[1]:.4g}. The code of the body has changed since. {otherwise}"
        )


def misfit(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is missing or has another shape on one side, and how many more; None if all agree."""
    shapes, expected = ({name: tuple(t.shape) for name, t in side.items()} for side in (saved, wanted))
    names = [name for name in (*expected, *shapes) if shapes.get(name) != expected.get(name)]
    names = list(dict.fromkeys(names))
    if not names:
        return None
    first, more = names[0], len(names) - 1
    told = f"{first} is {shapes.get(first, 'absent')} in the file and {expected.get(first, 'absent')} in the student"
    return told + (f", and {more} more differ" if more else "")
