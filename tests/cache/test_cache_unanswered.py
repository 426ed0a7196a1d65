"""Rows that a member does not answer, as a cache keeps them: NaN in the record, and their number in the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tiny import refused

from ensemble_distill.cache import records as record_files
from ensemble_distill.cache.formats import _FORMATS, Format
from ensemble_distill.cache.manifest import NAME, Manifest, _checksum
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.facts import Member, Split
from ensemble_distill.tasks.classification import Classification

ROWS, K, BATCH = 11, 3, 4
MEMBERS = (Member("a", "a" * 64), Member("b", "b" * 64))
KEYS = [RecordKey("train", member.name, 0) for member in MEMBERS]


def outputs(silent: int = 4) -> dict[RecordKey, np.ndarray]:  # type: ignore[type-arg]
    said = {key: np.random.default_rng(at).normal(size=(ROWS, K)).astype(np.float32) for at, key in enumerate(KEYS)}
    said[KEYS[1]][:silent] = np.nan
    return said


def made(folder: Path, silent: int = 4) -> Writer:
    task = Classification(("x", "y", "z"))
    whole = Writer(
        folder,
        Manifest(task, "float16", MEMBERS, {"train": Split(ROWS, "d" * 64, "all", "features")}, {}, {"batch_size": 4}),
    )
    for block in blocks(ROWS, BATCH, 1):
        said = outputs(silent)
        whole.put(block, {key: whole.manifest.format.encode(said[key][block.start : block.stop]) for key in KEYS})
    whole.join(KEYS, ROWS, BATCH)
    return whole


@pytest.mark.parametrize("name", [name for name in _FORMATS.keys if name not in ("inputs", "drawn")])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_record_holds_an_unanswered_row(name: str, dtype: str) -> None:
    form = Format(name, (4,), dtype)
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    values[[0, 3]] = np.nan
    with np.errstate(all="raise"):
        records = form.encode(values)
        again = form.decode(records)
    assert_array_equal(np.isnan(again), np.isnan(values))
    assert_allclose(again[[1, 2, 4]], values[[1, 2, 4]], atol=2e-3)
    assert form.unanswered(records) == 2


def test_a_cache_says_which_rows_are_answered(tmp_path: Path) -> None:
    made(tmp_path)
    cache = Cache(tmp_path)
    assert cache.manifest.unanswered == {KEYS[1]: 4}
    records = cache.open("train")
    assert records.partial
    assert cache.manifest.answered("train") == pytest.approx(1 - 4 / (2 * ROWS))
    assert cache.manifest.with_records({KEYS[1]: "0" * 64}).unanswered == {}  # made again, and all answered
    assert_array_equal(records.answered(), np.c_[np.ones(ROWS, bool), np.arange(ROWS) >= 4])
    alone = cache.only("a")
    assert alone.manifest.unanswered == {}
    assert not alone.open("train").partial


def test_which_rows_are_answered_in_every_view_is_read_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = {(0, 1): [2, 9], (1, 1): [0, 10], (1, 0): [5]}  # of a view and a member
    manifest = made(tmp_path).manifest
    keys = [RecordKey("train", member.name, 1) for member in MEMBERS]
    writer = Writer(tmp_path, manifest)
    for view in (0, 1):
        for key in (replace(key, view=view) for key in KEYS):
            said = np.random.default_rng(0).normal(size=(ROWS, K)).astype(np.float32)
            said[silent.get((view, KEYS.index(replace(key, view=0))), [])] = np.nan
            for block in blocks(ROWS, BATCH, 1):
                writer.put(block, {key: manifest.format.encode(said[block.start : block.stop])})
    writer.join([*KEYS, *keys], ROWS, BATCH)
    wanted = np.ones((ROWS, 2), bool)
    wanted[[2, 9, 0, 10], 1] = wanted[5, 0] = False
    for rows in (4, 8192):
        monkeypatch.setattr(record_files, "AT_ONCE", rows)
        assert_array_equal(Cache(tmp_path).open("train", 2).answered(), wanted)


def test_its_format_is_another_and_that_of_others_stays(tmp_path: Path) -> None:
    """An earlier version would take NaN for numbers, and refuses the number that it does not know."""
    made(tmp_path / "partial")
    made(tmp_path / "whole", silent=0)
    formats = {name: json.loads((tmp_path / name / NAME).read_text()) for name in ("partial", "whole")}
    assert {name: record["format"] for name, record in formats.items()} == {"partial": 2, "whole": 1}
    assert "unanswered" not in formats["whole"]
    assert not Cache(tmp_path / "whole").open("train").partial


def test_a_record_that_is_made_again_is_counted_again(tmp_path: Path) -> None:
    made(tmp_path)
    KEYS[1].path(tmp_path).unlink()
    again = Writer(tmp_path, Manifest.load(tmp_path))
    assert again.manifest.unanswered == {}
    assert again.pending(KEYS) == [KEYS[1]]


def test_a_count_that_no_pass_writes_is_damage(tmp_path: Path) -> None:
    made(tmp_path)
    record = json.loads((tmp_path / NAME).read_text())
    for wrong, told in (
        ({KEYS[1].text: ROWS + 1}, "12 rows"),
        ({"train/c/0": 1}, "train/c/0"),
        ({KEYS[1].text: 0}, "greater than or equal to 1"),
        ({"nothing": 1}, "nothing"),
    ):
        forged = {**record, "unanswered": wrong}
        del forged["sha256"]
        (tmp_path / NAME).write_text(json.dumps({**forged, "sha256": _checksum(forged)}))
        with refused("is damaged", told):
            Manifest.load(tmp_path)
