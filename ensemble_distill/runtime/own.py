"""What code of the user's own raises, told as its own: with its text, and where it was raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_distill.errors import EdistillError, quoted

PACKAGE = Path(__file__).parents[1]


@contextmanager
def told_as_own(what: str, remedy: str = "Fix it.") -> Iterator[None]:
    """Around each call of a user's code.

    Args:
        what: where it stands, and what was called: "train.method mine.py:Mine: heads".
        remedy: what else is to be said.

    Raises:
        EdistillError: whatever it raised, but for its own EdistillError, which passes as it is, and for MemoryError.
    """
    try:
        yield
    except (EdistillError, MemoryError):
        raise
    except Exception as error:
        raise EdistillError(f"{what} raised {quoted(error)}{_line(error)}. {remedy}") from error


def _line(error: BaseException) -> str:
    """Where in the code it was raised, as ", at mine.py, line 12": the user's own, or what it called.

    Frames of this package are passed over. Where all are its own the code could not even be called, since it takes
    other arguments; then there is no line to name.
    """
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if not file.is_relative_to(PACKAGE):
            found = f", at {file.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found
