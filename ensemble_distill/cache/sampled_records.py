"""Reading records of drawn ids: members' answers at these, with the weights that make sums over them unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.record_key import SampleKey
from ensemble_distill.cache.records import Records


class SampledRecords(Records):
    """The members' answers at the ids drawn for one split.

    `read` gives (B, M, *L, 3n + 1) numbers: n ids; the weight of each, p_m(id) ÷ its probability of being drawn; ln
    p_m(id); and the member's largest probability. `predictive.sampled` turns them into distributions.
    """

    sampled = True

    def __init__(self, folder: Path, manifest: Manifest, split: str, views: int) -> None:
        super().__init__(folder, manifest, split, views)
        self._drawn = Records(folder, manifest, split, views, [[SampleKey(split, view) for view in range(views)]])
        hows = [manifest.drawn[SampleKey(split, view)] for view in range(views)]
        self.samples = hows[0].samples
        # whether ids were drawn from exactly these members, so that they include the likeliest class of their mean
        members = {(member.name, member.sha256) for member in manifest.members}
        self.of_all = all(set(how.members) == members for how in hows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what `read` gives for a row and member: (*L, 3n + 1)."""
        return (*self._format.shape[:-1], 3 * self.samples + 1)

    def read(self, rows: Sequence[int] | NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[np.float32]:
        return weighed(super().read(rows, views), self._drawn.read(rows, views))


def weighed(said: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of `SampledRecords.read`.

    Args:
        said: members' answers, (B, M, *L, n + 1).
        drawn: ids, q and t, (B, 1, *L, 2n + 1).
    """
    n = said.shape[-1] - 1
    ids, q, t = drawn[..., :n], drawn[..., n : 2 * n], drawn[..., -1:]
    ratio, top = said[..., :n], said[..., n:]
    over = np.maximum(q, t)  # q ÷ the probability of being drawn, which is 1 for the first id
    over[..., 0] = q[..., 0]
    # an id with p_m = 0 has weight 0, so its logarithm does not matter
    log_p = np.log(np.where(ratio > 0, ratio, 1), dtype=np.float32) + np.where(ratio > 0, np.log(q), 0)
    return np.concatenate([np.broadcast_to(ids, ratio.shape), ratio * over, log_p, top], -1, dtype=np.float32)
