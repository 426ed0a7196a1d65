"""What a caching pass leaves behind, as it is told."""

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
    added: int  # records, and splits of decoded pictures; 0 when it was up to date
    bytes: int  # of the records
    decoded: int  # bytes of decoded pictures; 0 without
    seconds: float
    answered: dict[str, float]  # of splits that members do not answer all of: the share of rows, the mean over members

    @classmethod
    def of(cls, folder: Path, added: int, seconds: float) -> CacheReport:
        """What the cache in a folder holds."""
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
