"""What is told while a task runs: how long it takes, at which rate, and what `--quiet` leaves."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from cli_helpers import bar

from ensemble_distill.cli import render

# --- how long it takes --------------------------------------------------------------------------------------------


def test_how_long_a_task_takes_is_told_soon_and_then_each_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first step of 10 s that sets things up, and 999 of half a second each."""
    now = [100.0]
    monkeypatch.setattr(render, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = render.Shown()
    shown.start("training", 1000, "steps")
    for step in range(1000):
        now[0] += 0.5 if step else 10
        shown.advance(1, {"loss": 1 - step / 1000})
    shown.finish()
    first, second, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("training: 2 of 1,000 steps, 2 steps/s, about 8 min left, loss 0.9990")  # 998 of 0.5 s
    assert second.startswith("training: 123 of 1,000 steps, 2 steps/s, about 7 min left, loss 0.8780")  # 877: 438.5 s
    assert last == "training: 1,000 steps in 8 min"


def test_a_week_of_work_is_some_hundred_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(render, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = render.Shown()
    shown.start("training", 7 * 24 * 3600, "steps")
    for _ in range(7 * 24 * 360):
        now[0] += 10
        shown.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert 100 < len(lines) < 400
    assert lines[-1].partition(", memory")[0].startswith("training: 6")
    assert "1 steps/s, about" in lines[-1]


def test_a_bar_tells_rate_time_left_loss_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    now = [0.0]
    monkeypatch.setattr(render, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown = render.Shown()
    with shown:
        shown.start("training", 100, "steps")
        for step in range(50):
            now[0] += 2
            shown.advance(1, {"loss": step / 4})
        shown.bar.refresh()  # type: ignore[union-attr]
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(r"50/100 steps 0\.5 steps/s, about 2 min left, loss 12\.2500(, memory \d+\.\d GB)?", said)


def test_of_several_processes_the_first_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        bar("caching")
        render.Shown().warn("careful")
        assert bool(capsys.readouterr().err) is said


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with render.result_apart(quiet=True):
        bar("caching")
        render.message("beside")
        render.Shown().warn("careful")
    assert capsys.readouterr().err == "Warning: careful\n"
    render.message("beside")
    assert capsys.readouterr().err == "beside\n"


def test_a_short_task_is_told_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "time", SimpleNamespace(monotonic=lambda: 7.0))
    shown = render.Shown()
    shown.start("training", 5, "steps", done=3)
    for _ in range(2):
        shown.advance()
    shown.finish()
    assert capsys.readouterr().err.splitlines() == ["training: going on at step 3 of 5", "training: 5 steps"]
