"""The report of a caching pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemble_distill.cache.manifest import Manifest, bytes_of_records
from ensemble_distill.data.decoded_blocks import FOLDER


@dataclass(frozen=True)
class CacheReport:
    """What the cache holds now, and what this pass added."""

    folder: Path
    members: tuple[str, ...]
    classes: tuple[str, ...]
    predicts: str  # what an answer is, in words
    splits: dict[str, tuple[int, int]]  # rows and views by name
    added: int  # records, plus splits of decoded images; 0 if it was up to date
    bytes: int  # of the records
    decoded: int  # bytes of decoded images; 0 if there are none
    seconds: float
    answered: dict[str, float]  # share of rows answered, mean over members; only of splits not fully answered

    @classmethod
    def of(cls, folder: Path, added: int, seconds: float) -> CacheReport:
        """Report the cache in a folder."""
        manifest = Manifest.load(folder)
        return cls(
            folder=folder,
            members=manifest.names,
            classes=manifest.classes,
            predicts=manifest.settled.told,
            splits={name: (split.rows, manifest.views(name)) for name, split in manifest.splits.items()},
            added=added,
            bytes=bytes_of_records(folder),
            decoded=sum(path.stat().st_size for path in (folder / FOLDER).rglob("*.safetensors")),
            seconds=seconds,
            answered={
                name: manifest.answered(name) for name in dict.fromkeys(key.split for key in manifest.unanswered)
            },
        )
