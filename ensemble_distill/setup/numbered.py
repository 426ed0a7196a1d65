"""Numbered files of one split as a pattern: `train-{00000..00004}-of-00005.parquet`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

NUMBERED = re.compile(r"([A-Za-z]+)([-_.]?)(\d{1,9})(\D.*)")
PATTERN = re.compile(r"([A-Za-z]+)[-_.]?(\d+|\{\d+\.\.\d+\})\D")


def word_of(path: Path) -> str:
    """The word that a file or a pattern begins with, in lower case, without number and suffix."""
    found = PATTERN.match(path.name)
    return (found[1] if found else path.stem).lower()


def patterns_in(files: Sequence[Path], words: Collection[str]) -> dict[Path, list[Path]]:
    """Patterns of numbered files whose names begin with one of the words, and the files of each.

    The pattern of a single file is its own name. Files among which a number is missing have no pattern.
    """
    alike: dict[tuple[str, str, str], dict[int, tuple[str, Path]]] = defaultdict(dict)
    for file in files:
        found = NUMBERED.fullmatch(file.name)
        if found and found[1].lower() in words:
            alike[found[1], found[2], found[4]][int(found[3])] = (found[3], file)
    made: dict[Path, list[Path]] = {}
    for (word, between, rest), numbers in alike.items():
        first, last = min(numbers), max(numbers)
        if last - first + 1 != len(numbers):
            continue
        digits = f"{{{numbers[first][0]}..{numbers[last][0]}}}" if len(numbers) > 1 else numbers[first][0]
        folder = numbers[first][1].parent
        made[folder / f"{word}{between}{digits}{rest}"] = [file for _, (_, file) in sorted(numbers.items())]
    return made
