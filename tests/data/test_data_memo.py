"""The memo keeps small sources, never more bytes than its limit."""

import pickle
import tracemalloc

import numpy as np

from ensemble_distill.data.memo import BESIDE, SLAB, Memo
from ensemble_distill.data.source import Item


def reader(sizes: list[int]) -> tuple[list[int], object]:
    read: list[int] = []

    def item(row: int) -> Item:
        read.append(row)
        return Item(np.zeros(sizes[row], np.uint8), None, "pixels")

    return read, item


def test_a_small_source_is_read_once() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(3, 5)).astype(np.float32), rng.integers(0, 255, (7, 1), dtype=np.uint8), np.ones((2, 2))]
    read: list[int] = []

    def item(row: int) -> Item:
        read.append(row)
        return Item(values[row].copy(), np.array(row), "pixels")

    memo = Memo[Item](count=3, limit=1000, beside=0)
    for _ in range(3):
        for row in (2, 0, 1):
            found = memo.get(row, item)
            np.testing.assert_array_equal(found.x, values[row], strict=True)
            assert found.y == row
            assert not found.x.flags.writeable
    assert read == [2, 0, 1]


def test_what_is_kept_lies_in_few_pieces_of_memory() -> None:
    """Thousands of small arrays kept among the passing tensors of training would let the process grow each step."""
    memo = Memo[Item](count=1000, limit=2**20)
    for _ in range(2):
        found = [
            memo.get(row, lambda row: Item(np.full(50, row % 256, np.uint8), None, "pixels")) for row in range(1000)
        ]
    bases = set()
    for row, item in enumerate(found):
        base = item.x
        while base.base is not None:
            base = base.base
        bases.add(id(base))
        assert (item.x == row % 256).all()
    assert len(bases) == 1


def test_a_large_source_is_not_kept() -> None:
    read, item = reader([10] * 5)
    memo = Memo(count=5, limit=49, beside=0)
    for row in (0, 0, 1, 1):
        memo.get(row, item)  # type: ignore[arg-type]
    assert read == [0, 0, 1, 1]
    assert len(memo) == 0


def test_what_python_keeps_of_small_values_counts() -> None:
    """Against what the process allocates: of a million rows of a few numbers the arrays are the smallest part."""
    memo, rows = Memo[Item](count=4000, limit=2**30), np.random.default_rng(0).normal(size=(4000, 4))
    tracemalloc.start()
    try:
        for row in range(4000):
            memo.get((row, 0), lambda key: Item(rows[key[0]].copy(), np.array(key[0]), "features"))
        taken = tracemalloc.get_traced_memory()[0] - SLAB  # whose pages are touched as they are filled
    finally:
        tracemalloc.stop()
    assert len(memo) == 4000
    assert taken < 4000 * BESIDE < 2 * taken


def test_the_limit_holds_where_the_first_row_misleads() -> None:
    read, item = reader([10, 25, 10, 10])
    memo = Memo(count=4, limit=40, beside=0)
    for _ in range(2):
        for row in range(4):
            memo.get(row, item)  # type: ignore[arg-type]
    assert read == [0, 1, 2, 3, 2, 3]
    assert len(memo) == 2


def test_a_copy_starts_empty_with_the_same_limit() -> None:
    _, item = reader([10])
    memo = Memo(count=1, limit=40, beside=0)
    memo.get(0, item)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(memo))
    assert (len(memo), len(copy), copy.count, copy.limit) == (1, 0, 1, 40)
