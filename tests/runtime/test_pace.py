"""How fast something goes, in words."""

from __future__ import annotations

import resource
import sys

import numpy as np
import pytest

from ensemble_distill.runtime import pace
from ensemble_distill.runtime.pace import Pace, memory_used


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "memory_told", list)


def test_the_first_step_says_nothing_of_the_others() -> None:
    shown = Pace(total=100, unit="rows", done=20)
    assert (shown.rate(5), shown(5)) == (None, "")
    shown.advance(100.0, 4)
    assert shown.rate(101) is None
    shown.advance(102.0, 6, {"loss": 0.5})
    assert shown.rate(102) == 3
    assert shown(102.0) == "3 rows/s, about 23 s left, loss 0.5000"  # 70 rows: 23.3 s


def test_the_rate_is_that_of_the_last_minute() -> None:
    shown = Pace(total=10**6, unit="steps", done=0)
    for second in range(100):
        shown.advance(second, 1)
    for second in range(100, 200):
        shown.advance(second, 10)
    assert shown.rate(199) == pytest.approx(10)


def test_a_fact_stays_until_there_is_another() -> None:
    shown = Pace(10, "steps", 0)
    shown.advance(0, 1, {"loss": 1})
    shown.advance(1, 1)
    assert "loss 1.0000" in shown(1)


@pytest.mark.parametrize(("rate", "told"), [(0.03125, "0.0312"), (7.123, "7.12"), (48.5, "48.5"), (1234.5, "1,234")])
def test_three_digits_of_a_rate(rate: float, told: str) -> None:
    assert pace._short(rate) == told


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_memory_is_what_the_process_holds() -> None:
    before = memory_used()
    held = np.ones(10**8, dtype=np.uint8)
    after = memory_used()
    assert before is not None
    assert after is not None
    assert 0.9e8 < after - before < 1.2e8
    assert after <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2**20
    assert held[0] == 1
