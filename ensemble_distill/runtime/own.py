"""Errors raised by user code, reported as the user's, with their text and the place that raised them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_distill.errors import EdistillError, quoted

PACKAGE = Path(__file__).parents[1]


@contextmanager
def told_as_own(what: str, remedy: str = "Fix it.") -> Iterator[None]:
    """Wrap a call of user code, and report its errors as the user's.

    Args:
        what: the setting, and what was called: "train.method mine.py:Mine: heads".
        remedy: the last sentence of the message.

    Raises:
        EdistillError: for any exception of the block except EdistillError and MemoryError, which pass unchanged.
    """
    try:
        yield
    except (EdistillError, MemoryError):
        raise
    except Exception as error:
        raise EdistillError(f"{what} raised {quoted(error)}{_line(error)}. {remedy}") from error


def _line(error: BaseException) -> str:
    """Where in user code the error was raised, or in what that code called, as ", at mine.py, line 12".

    Frames of this package are skipped. If all frames are its own, the call itself failed because the user's function
    takes other arguments; then there is no line to name, and the result is "".
    """
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if not file.is_relative_to(PACKAGE):
            found = f", at {file.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found
