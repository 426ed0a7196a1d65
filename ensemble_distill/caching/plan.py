"""What the caching pass is asked to do of one split, by whom it is done, and what it notes beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import nn

from ensemble_distill.cache.manifest import Split
from ensemble_distill.data.source import Source, View
from ensemble_distill.facts import Member
from ensemble_distill.runtime.progress import Progress


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


@dataclass(frozen=True)
class Panel:
    """The members as they are asked: all of a batch of rows, which `workers` loader processes bring.

    Attributes:
        members, modules: their facts in order, and each one's module by its name, on `device`.
    """

    members: Sequence[Member]
    modules: Mapping[str, nn.Module]
    batch_size: int
    device: torch.device
    workers: int
    progress: Progress


def library_versions() -> dict[str, str]:
    """Of the libraries that outputs depend on."""
    return {name: version(name) for name in ("torch", "timm", "numpy", "pillow")}


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where the data has no names for them."""
    return tuple(str(k) for k in range(count))


def names_in(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The class names of a manifest or a config; None where the data had none, and they are numbers."""
    return None if classes == numbered(len(classes)) else classes
