"""What is told before a pass: rows, time and bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny import make_folder, settings

from ensemble_distill.caching import forecast
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits


def told(folder: Path, **overrides: object) -> list[str]:
    progress = Silent()
    cache_logits(settings(folder, overrides), progress=progress)
    return [note for note in progress.notes if "to write" in note]


def test_a_pass_says_its_rows_and_bytes_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "bytes_told", lambda count: f"{count} bytes")
    folder = make_folder(tmp_path / "tiny")
    (note,) = told(folder)
    rows = 2 * 40 + 12 + 10 + 7  # two views of each training row
    assert note.startswith(f"3 members, 4 splits, {rows} rows in their views: ")
    written = sum(np.load(path).nbytes for path in (folder / "cache/records").rglob("*.npy"))
    assert f": {written} bytes to write, " in note
    assert told(folder) == [], "nothing is left to do"
    (more,) = told(folder, **{"views.count": 3})
    assert "40 rows in their views" in more, "one view more"


def test_a_long_pass_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 300, "validation": 12})
    monkeypatch.setattr(forecast, "seconds_a_row", lambda *_: (0.5, 1.5))
    (note,) = told(folder)
    assert "612 rows in their views: about 20 min, " in note  # 612 rows of two seconds: 1,224 s


def test_seconds_are_those_of_a_row_in_an_augmented_view(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 300, "validation": 12})
    (note,) = told(folder)
    assert re.search(r"about \d+ s, \d+\.\d kB to write, [\d.,]+ GB free\.", note)
