"""One data set split into several by a seeded, stratified rule, which is told wherever its rows are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.keys import uniform_row

BINS = 10  # of targets that are numbers, equally many rows in each
RULE = 1  # which rule this is: another one would be another split


class Portion(Subset):
    """The rows of one split."""

    def __init__(self, whole: Source, rows: Array, rule: str) -> None:
        super().__init__(whole, rows)
        self.rule = rule

    @property
    def digest_scope(self) -> str:
        return f"{super().digest_scope}, {self.rule}"


@dataclass(frozen=True)
class Rule:
    """Attributes:
    shares: of the rows, by split; the rest is train.
    seed: of which rows those are.
    """

    shares: Mapping[str, float]
    seed: int = 0

    def told(self, name: str) -> str:
        shares = ", ".join(f"{split} {share:g}" for split, share in self.shares.items())
        return f"{name} of rule {RULE} with seed {self.seed}: {shares}, stratified by label"


def portions(whole: Source, rule: Rule) -> dict[str, Source]:
    """The splits of a data set: each has its share of the rows of every class, and of ten bins of a target.

    A row's split depends on the seed, the labels and the row alone.

    Raises:
        EdistillError: a split has no row; or rows are of a stream, where those beside each other share what they say.
    """
    if whole.kind == "tokens":
        raise EdistillError(
            "data.all holds tokens of a stream, and rows beside each other share their context, so that a split by row "
            "would give test rows away to train. Give each split a file of its own."
        )
    shares = {"train": 1 - sum(rule.shares.values()), **rule.shares}
    strata = _strata(whole.labels, len(whole))
    drawn = uniform_row(len(whole), "portions", RULE, rule.seed)
    order = np.lexsort((drawn, strata))  # by stratum, at random within
    dealt = _dealt(len(whole), list(shares.values()))
    found: dict[str, Source] = {}
    for index, name in enumerate(shares):
        rows = np.sort(order[dealt == index]).astype(np.int64)
        if not len(rows):
            raise EdistillError(
                f"data.split gives {name} {shares[name]:g} of {len(whole)} rows, which is none. Give it more, or leave "
                "it out."
            )
        found[name] = Portion(whole, rows, rule.told(name))
    return found


def _dealt(total: int, shares: list[float]) -> Array:
    """Which split each of `total` rows goes to, in their order: always the one that lacks most of its share."""
    given, dealt = np.zeros(len(shares)), np.empty(total, np.int64)
    wanted = np.array(shares)
    for at in range(total):
        index = int(np.argmax(wanted * (at + 1) - given))
        dealt[at] = index
        given[index] += 1
    return dealt


def _strata(labels: Array | None, rows: int) -> Array:
    """The stratum of each row, int64 (rows,): its class or its pattern of labels, or the bin of its target, of several
    targets their mean in standard deviations."""
    if labels is None:
        return np.zeros(rows, np.int64)
    if labels.dtype.kind in "iu":
        flat = labels.reshape(rows, -1)
        return np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    spread = labels.reshape(rows, -1).astype(np.float64)
    deviation = spread.std(axis=0)
    level = ((spread - spread.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).mean(axis=1)
    ranks = np.empty(rows, np.int64)
    ranks[np.argsort(level, kind="stable")] = np.arange(rows)
    return ranks * BINS // rows
