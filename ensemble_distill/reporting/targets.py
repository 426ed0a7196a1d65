"""Where a report or a figure may be written, checked before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ensemble_distill.errors import EdistillError


def refuse_target(option: str, path: Path, endings: Sequence[str]) -> None:
    """Raise EdistillError if the file that an option names cannot be written.

    Args:
        endings: the allowed suffixes; the first is suggested.
    """
    if path.is_dir():
        proposed = path / f"{option.lstrip('-')}{endings[0]}"
        raise EdistillError(f"{option} is {path}, which is a folder. Name a file in it, such as {proposed}.")
    if path.suffix.lower() not in endings:
        raise EdistillError(
            f"{option} is {path}, which ends in {path.suffix or 'nothing'}, and it has to end in "
            f"{' or '.join(endings)}. Name it {path.with_suffix(endings[0])}."
        )
    if not path.parent.is_dir():
        raise EdistillError(f"{option} is {path}, and there is no folder {path.parent}. Make it, or name another.")
    if not os.access(path.parent, os.W_OK):
        raise EdistillError(
            f"{option} is {path}, and nothing may be written to {path.absolute().parent}. Name another folder."
        )
