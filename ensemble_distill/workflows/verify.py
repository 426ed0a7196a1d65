"""`edistill verify`: every checksum of a cache, computed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.cache.reader import Cache


@dataclass(frozen=True)
class VerifyReport:
    """What the checksums of a cache say."""

    folder: Path
    records: int
    problems: list[str]  # a sentence each
    unfinished: list[str]  # splits without a complete view


def verify(folder: Path) -> VerifyReport:
    """Raises: EdistillError when the folder holds no readable cache."""
    cache = Cache(folder)
    manifest = cache.manifest
    return VerifyReport(
        folder=folder,
        records=len(manifest.records),
        problems=cache.verify(),
        unfinished=[name for name in manifest.splits if manifest.views(name) == 0],
    )
