"""Signals that wait until something is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from ensemble_distill.runtime.stopping import SIGNALS, stop_waits

ENDED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def answered() -> Iterator[None]:
    """A parent that answers both signals, each with an exception of its own."""

    def answer(number: int, _: object) -> None:
        raise ENDED[signal.Signals(number)]

    before = {number: signal.signal(number, answer) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_until_the_block_ends(number: signal.Signals) -> None:
    done: list[bool] = []

    def work() -> None:
        with stop_waits() as asked:
            done.append(asked())
            signal.raise_signal(number)
            done.append(asked())

    with pytest.raises(ENDED[number]):
        work()
    assert done == [False, True]


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_wait(first: signal.Signals, second: signal.Signals) -> None:
    done: list[str] = []

    def work() -> None:
        with stop_waits():
            signal.raise_signal(first)
            done.append("waits")
            signal.raise_signal(second)
            done.append("never")

    with pytest.raises(ENDED[second]):
        work()
    assert done == ["waits"]


def test_nobody_asks_and_all_is_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_waits() as asked:
        assert not asked()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with stop_waits() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert not asked()


def test_other_threads_get_no_signals() -> None:
    said: list[bool] = []

    def work() -> None:
        with stop_waits() as asked:
            said.append(asked())

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]
    assert [signal.getsignal(number) for number in SIGNALS] == before
