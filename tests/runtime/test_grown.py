"""Arrays that grow: what concatenate gives, in few pieces of memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from ensemble_distill.runtime import grown
from ensemble_distill.runtime.grown import Grown, GrownValues


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_parts_stand_end_to_end(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grown, "FIRST", 2)
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(rows, *shape)) for rows in (1, 0, 3, 1, 9, 2)]
    expected, whole = np.concatenate(parts), Grown()
    for at, part in enumerate(parts):
        whole.add(torch.from_numpy(part) if at % 2 else part)
        part[...] = np.nan  # it was copied
    assert len(whole) == 16
    assert_array_equal(whole.all(), expected)


def test_a_wider_dtype_holds_what_came_before() -> None:
    whole = Grown()
    for part in ([True, False], [0.5, np.nan]):
        whole.add(part)
    assert_array_equal(whole.all(), [1.0, 0.0, 0.5, np.nan])


def test_it_moves_to_a_new_place_seldom() -> None:
    whole, places = Grown(), set()
    for _ in range(3000):
        whole.add(np.zeros(7))
        places.add(whole.all().ctypes.data)
    assert len(places) <= 6  # 1,024 rows, and twice as many each time


def test_values_by_name() -> None:
    values = GrownValues()
    assert values.all() == {}
    for at in range(3):
        values.add({"nll": torch.full((2,), float(at)), "each": np.full((2, 3), at)})
    found = values.all()
    assert_array_equal(found["nll"], [0, 0, 1, 1, 2, 2])
    assert found["each"].shape == (6, 3)
    assert len(Grown().all()) == 0
