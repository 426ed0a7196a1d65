"""The memo keeps small sources, never more bytes than its limit."""

import pickle

import numpy as np

from ensemble_distill.data.memo import Memo
from ensemble_distill.data.source import Item


def reader(sizes: list[int]) -> tuple[list[int], object]:
    read: list[int] = []

    def item(row: int) -> Item:
        read.append(row)
        return Item(np.zeros(sizes[row], np.uint8), None, "pixels")

    return read, item


def test_a_small_source_is_read_once() -> None:
    read, item = reader([10] * 4)
    memo = Memo(count=4, limit=40)
    first = [memo.get(row, item) for row in (2, 0, 1, 3)]  # type: ignore[arg-type]
    assert [memo.get(row, item) for row in (2, 0, 1, 3)] == first  # type: ignore[arg-type]
    assert read == [2, 0, 1, 3]
    assert not first[0].x.flags.writeable


def test_a_large_source_is_not_kept() -> None:
    read, item = reader([10] * 5)
    memo = Memo(count=5, limit=49)
    for row in (0, 0, 1, 1):
        memo.get(row, item)  # type: ignore[arg-type]
    assert read == [0, 0, 1, 1]
    assert len(memo) == 0


def test_the_limit_holds_where_the_first_row_misleads() -> None:
    read, item = reader([10, 25, 10, 10])
    memo = Memo(count=4, limit=40)
    for _ in range(2):
        for row in range(4):
            memo.get(row, item)  # type: ignore[arg-type]
    assert read == [0, 1, 2, 3, 2, 3]
    assert len(memo) == 2


def test_a_copy_starts_empty_with_the_same_limit() -> None:
    _, item = reader([10])
    memo = Memo(count=1, limit=40)
    memo.get(0, item)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(memo))
    assert (len(memo), len(copy), copy.count, copy.limit) == (1, 0, 1, 40)
