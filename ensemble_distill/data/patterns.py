"""Sources that name several files by a range of numbers: `train-{000..009}.tar`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ensemble_distill.data.walk import there
from ensemble_distill.errors import EdistillError

MOST = 10**5  # files


def files_of(source: str) -> list[Path]:
    """The files in their order: the one of that name, or those of a pattern.

    Raises:
        EdistillError: one is missing, or a pattern names more than `MOST`.
    """
    found = list(islice(_expanded(source), MOST + 1)) if not there(source) else [source]
    if len(found) > MOST:
        raise EdistillError(f"{source} names more than {MOST:,} files. Name {MOST:,} at most.")
    if found == [source] and not there(source):
        raise EdistillError(f"The data's source {source} does not exist. Fix the path.")
    missing = [one for one in found if not Path(one).is_file()]
    if missing:
        raise EdistillError(
            f"{source}: there is no {missing[0]}"
            + (f", nor {len(missing) - 1} others" if len(missing) > 1 else "")
            + ". Fix the path, or restore it."
        )
    return [Path(one) for one in found]


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern of file names."""
    return next(_expanded(source)) != source


def _expanded(source: str) -> Iterator[str]:
    """The names that a pattern stands for; numbers are padded with zeros if both ends have equally many digits.

    Raises:
        EdistillError: a range counts downwards, or is too long.
    """
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}", source)
    if found is None:
        yield source
        return
    first, last = (int(digits) for digits in found.groups())
    if not first <= last < first + MOST:
        raise EdistillError(f"{source} goes from {first} to {last}. Count upwards, {MOST:,} files at most.")
    for number in range(first, last + 1):
        middle = f"{number:0{len(found[1])}d}" if len(found[1]) == len(found[2]) else str(number)
        yield from _expanded(f"{source[: found.start()]}{middle}{source[found.end() :]}")
