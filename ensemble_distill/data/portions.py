"""One data set split into several by a seeded, stratified rule, which is recorded with the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.keys import uniform_row

MOST = 2**18  # rows; larger data sets are not searched for duplicates
BINS = 10  # bins of numeric targets, with equally many rows in each
RULE = 1  # the version of this rule; another version makes other splits


class Portion(Subset):
    """The rows of one split.

    Args:
        rule: how they were chosen, in words.
        remark: a warning about them for the user, or None.
    """

    def __init__(self, whole: Source, rows: Array, rule: str, remark: str | None = None) -> None:
        super().__init__(whole, rows)
        self.rule = rule
        self.remarks = (*whole.remarks, *([] if remark is None else [remark]))

    @property
    def digest_scope(self) -> str:
        return f"{super().digest_scope}, {self.rule}"


@dataclass(frozen=True)
class Rule:
    """How a data set is split.

    Attributes:
        shares: each split's share of the rows; train gets the rest.
        seed: the seed of the draw.
    """

    shares: Mapping[str, float]
    seed: int = 0

    def told(self, name: str) -> str:
        shares = ", ".join(f"{split} {share:g}" for split, share in self.shares.items())
        return f"{name} of rule {RULE} with seed {self.seed}: {shares}, stratified by label"


def portions(whole: Source, rule: Rule) -> dict[str, Source]:
    """The splits of a data set: each has its share of the rows of every class, or of ten bins of a target.

    A row's split depends on the rule, the labels and the row alone.

    Raises:
        EdistillError: a split has no row, or rows are windows of a token stream, where neighbors share tokens.
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
    contents = _contents(whole)
    for index, name in enumerate(shares):
        rows = np.sort(order[dealt == index]).astype(np.int64)
        if not len(rows):
            raise EdistillError(
                f"data.split gives {name} {shares[name]:g} of {len(whole)} rows, which is none. Give it more, or leave "
                "it out."
            )
        learned = np.sort(order[dealt == 0]) if index else None
        found[name] = Portion(whole, rows, rule.told(name), _twins(contents, rows, learned))
    return found


def _contents(whole: Source) -> list[bytes] | None:
    """A digest of each row's input, to find duplicates; None for pictures or many rows, which take too long to read."""
    if whole.kind == "pixels" or len(whole) > MOST:
        return None
    inputs = (np.ascontiguousarray(whole.item(row).x) for row in range(len(whole)))
    return [hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in inputs]


def _twins(contents: list[bytes] | None, rows: Array, learned: Array | None) -> str | None:
    """A remark on how many rows of a split are also in train; None if none are, and for train itself."""
    if contents is None or learned is None:
        return None
    there = {contents[row] for row in learned.tolist()}
    count = sum(contents[row] in there for row in rows.tolist())
    if not count:
        return None
    return (
        f"{count:,} of {len(rows):,} rows are equal to rows of train, so that figures of them are too good. Drop the "
        "doubles from data.all."
    )


def _dealt(total: int, shares: list[float]) -> Array:
    """(total,) the index of each row's split, in order: always the split that lacks most of its share."""
    given, dealt = np.zeros(len(shares)), np.empty(total, np.int64)
    wanted = np.array(shares)
    for at in range(total):
        index = int(np.argmax(wanted * (at + 1) - given))
        dealt[at] = index
        given[index] += 1
    return dealt


def _strata(labels: Array | None, rows: int) -> Array:
    """The stratum of each row, int64 (rows,): its class, its pattern of labels, or the bin of its target.

    Several targets are binned by the mean of their standardized values.
    """
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
