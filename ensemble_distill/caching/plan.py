"""What the caching pass is asked to do of one split, and what it notes beside."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from ensemble_distill.cache.manifest import Split
from ensemble_distill.data.source import Source, View


@dataclass(frozen=True)
class SplitPlan:
    """One split to cache: its rows, and the views to render of each."""

    source: Source
    view: View
    transform: str
    seed: int
    count: int

    def facts(self) -> Split:
        return Split(
            rows=len(self.source),
            digest=self.source.digest,
            digest_scope=self.source.digest_scope,
            kind=self.source.kind,
            transform=self.transform,
            seed=self.seed,
            labels=self.source.labels is not None,
        )


def library_versions() -> dict[str, str]:
    """Of the libraries that outputs depend on."""
    return {name: version(name) for name in ("torch", "timm", "numpy", "pillow")}


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where the data has no names for them."""
    return tuple(str(k) for k in range(count))
