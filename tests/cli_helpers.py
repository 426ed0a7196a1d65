"""What the command line says, as one text."""

from __future__ import annotations

from ensemble_distill.cli import render
from ensemble_distill.cli.interrupts import GOES_ON

INTERRUPTED = f"Interrupted. {GOES_ON}"


def message_of(stderr: str) -> str:
    """The one message of a refusal with its hint behind it: an error, a blank line, a hint. What names break into
    several lines is indented."""
    wrong, blank, hint = stderr.removesuffix("\n").partition("\n\n")
    for part, begins in ((wrong, "Error: "), *([(hint, "hint: ")] if blank else [])):
        first, *more = part.splitlines()
        assert first.startswith(begins), stderr
        assert all(line.startswith("  ") for line in more), stderr
    return f"{wrong} {hint.removeprefix('hint: ')}".rstrip()


def bar(name: str) -> None:
    progress = render.Shown()
    with progress:
        progress.start(name, 3, "rows", done=1)
        progress.advance(1, {name: 0.5})
        progress.finish()
