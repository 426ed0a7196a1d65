"""A killed caching pass goes on, from the last whole block, to the bytes of an uninterrupted one."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    contents,
    edistill,
    killed_at,
    make_folder,
    refused,
    rows_asked,
    save_data,
    save_member,
    settings,
    wait_until,
)

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import FILES, NAME, Manifest
from ensemble_distill.runtime.files import clear_folder
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits

WRITE = 4  # crash points of one write


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)  # of the 40 training rows: 16, 16 and 8


pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return rows_asked(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with its cache, made without interruption."""
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder))
    return folder


@pytest.fixture
def again(folder: Path) -> Settings:
    """Settings for the same cache in another place."""
    return settings(folder, {"output.cache": "again"})


def facts(cache: Path) -> dict[str, bytes]:
    """All that a cache holds, without the settings beside it, which say where it lies."""
    return contents(cache, ["args.toml", ".part"])


# --- every point ------------------------------------------------------------------------------------------------


def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, complete = folder / "again", 0
    found: list[dict[str, bytes]] = []
    for point in itertools.count():
        shutil.rmtree(cache, ignore_errors=True)
        with killed_at(point, monkeypatch, cache) as happened:
            cache_logits(again)
        if not happened:
            break
        if contents(cache) in found:
            continue  # a second pass knows nothing but what is on disk
        found.append(contents(cache))
        complete += cache_logits(again).added == 0
        assert facts(cache) == facts(folder / "cache"), f"after a crash at point {point}"
        assert (cache / "args.toml").is_file()
    # the manifest; samples, blocks, records and manifest of each split; the settings
    writes = 1 + (1 + 3 + 4 + 1) + (1 + 1 + 2 + 1) + 1
    assert point == WRITE * writes
    assert len(found) > 2 * writes, "at least without each file, and with half of it"
    assert complete == 4, "with all records noted and only parts to drop and settings to write"


def test_only_unfinished_blocks_are_computed_again(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, asked: Counter[str]
) -> None:
    for block, left in ((0, 40), (1, 24), (2, 8)):
        shutil.rmtree(folder / "again", ignore_errors=True)
        with killed_at(WRITE * (2 + block) + 2, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        assert happened
        asked.clear()
        cache_logits(again)
        assert asked == {"member-0": 2 * left + 6, "member-1": 2 * left + 6}


def test_crashes_in_a_row_go_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crashes in itertools.count():
        with killed_at(2 * WRITE + 2 * crashes, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        if not happened:
            break
    assert crashes >= 8
    assert facts(folder / "again") == facts(folder / "cache")


def test_an_extension_killed_at_any_point_loses_nothing_and_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new member, a new view and a new split at once."""
    save_member(folder, 7)
    save_data(folder, "test", 5)
    more = {"views.count": 3, "data.test": "data/test.npz"}
    cache_logits(settings(folder, {**more, "output.cache": "whole"}))
    old = {name: content for name, content in facts(folder / "cache").items() if name.endswith(".npy")}
    extended = settings(folder, {**more, "output.cache": "again"})
    for point in itertools.count(0, 5):  # prime to the points of a write, so each is met at some write
        shutil.rmtree(folder / "again", ignore_errors=True)
        shutil.copytree(folder / "cache", folder / "again")
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(extended)
        assert facts(folder / "again").items() >= old.items()
        cache_logits(extended)
        assert facts(folder / "again") == facts(folder / "whole"), f"after a crash at point {point}"
        if not happened:
            break
    assert point > 60


def test_a_member_added_in_the_middle_of_a_pass_shares_its_blocks(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, asked: Counter[str]
) -> None:
    with killed_at(WRITE * 4, monkeypatch, folder / "again") as happened:  # two of the three blocks are whole
        cache_logits(again)
    assert happened
    save_member(folder, 7)
    asked.clear()
    cache_logits(again)
    assert asked == {"member-0": 2 * 8 + 6, "member-1": 2 * 8 + 6, "member-7": 2 * 40 + 6}
    cache_logits(settings(folder, {"output.cache": "whole"}))
    assert facts(folder / "again") == facts(folder / "whole")


def test_parts_left_by_a_pass_that_was_all_but_done_go(folder: Path) -> None:
    before = facts(folder / "cache")
    stale = folder / "cache/parts/validation/0000000000-0000000006-00000000.safetensors"
    for added, more in ((0, {}), (2, {"views.count": 3})):
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"stale")
        assert cache_logits(settings(folder, more)).added == added
        assert not stale.exists()
        assert facts(folder / "cache").keys() >= before.keys()


@pytest.mark.parametrize(
    "change",
    [{"cache.batch-size": 2}, {"cache.dtype": "float32"}, {"views.seed": 3}, {"views.transform": "crop-flip"}],
    ids=str,
)
def test_before_anything_is_complete_anything_may_change(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """A first pass that ran out of memory goes on with smaller batches; blocks of the old kind are of no use."""
    with killed_at(WRITE * 4, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    assert any((folder / "again/parts").rglob("*.safetensors"))
    cache_logits(settings(folder, {"output.cache": "again", **change}))
    cache_logits(settings(folder, {"output.cache": "whole", **change}))
    assert facts(folder / "again") == facts(folder / "whole")


def test_before_anything_is_complete_even_the_classes_may_change(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(WRITE * 4, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    for split in ("train", "validation"):
        data = dict(np.load(folder / f"data/{split}.npz"))
        np.savez(folder / f"data/{split}.npz", **data, classes=np.array(["a", "b", "c"]))
    assert cache_logits(again).classes == ("a", "b", "c")
    cache_logits(settings(folder, {"output.cache": "whole"}))
    assert facts(folder / "again") == facts(folder / "whole")


# --- overwriting ------------------------------------------------------------------------------------------------


def test_the_manifest_goes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, what is left of a cache would look like somebody else's folder."""
    gone: list[str] = []
    unlink, rmtree = Path.unlink, shutil.rmtree
    monkeypatch.setattr(Path, "unlink", lambda path, **more: (gone.append(path.name), unlink(path, **more)))
    monkeypatch.setattr(shutil, "rmtree", lambda path: (gone.append(path.name), rmtree(path)))
    clear_folder(folder / "cache", FILES, last=NAME)
    assert {"args.toml", "records", "replay"} <= set(gone[:-1])
    assert gone[-1] == NAME
    assert [path.name for path in (folder / "cache").iterdir()] == [".lock"]


def test_an_overwriting_pass_that_dies_can_be_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder / "cache")
    for point in (0, 2, 9):
        with killed_at(point, monkeypatch, folder / "cache") as happened:
            cache_logits(settings(folder), overwrite=True)
        assert happened
        cache_logits(settings(folder))
        assert contents(folder / "cache") == before


# --- real kills -------------------------------------------------------------------------------------------------

LARGE = {"cache.batch-size": 1024, "views.count": 1}


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four blocks of the usual size, and the cache of an uninterrupted pass in `whole`."""
    monkeypatch.setattr(writer, "BLOCK_ROWS", 4096)
    folder = make_folder(tmp_path / "large", members=2, rows={"train": 3 * 4096 + 100, "validation": 500})
    cache_logits(settings(folder, {**LARGE, "output.cache": "whole"}))
    return folder


def test_a_killed_process_holds_no_lock_and_loses_no_whole_block(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = large / "cache"
    process = edistill(large, "cache-logits", settings=LARGE, sleep=0.05)
    try:
        wait_until(lambda: any((cache / "parts").rglob("*.safetensors")), process)
        with refused(f"Another process is writing to {cache}"):
            cache_logits(settings(large, LARGE))
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not Manifest.load(cache).records, "it was killed too late to show anything"
    kept = {path: path.stat().st_mtime_ns for path in (cache / "parts").rglob("*.safetensors")}
    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "drop_parts", lambda self, split: None)
        cache_logits(settings(large, LARGE))
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items()), "a whole block was computed again"
    cache_logits(settings(large, LARGE))
    assert facts(cache) == facts(large / "whole")


def test_sigterm_is_one_line_and_loses_no_whole_block(large: Path) -> None:
    cache = large / "cache"
    process = edistill(large, "cache-logits", settings=LARGE, sleep=0.05)
    wait_until(lambda: any((cache / "parts").rglob("*.safetensors")), process)
    process.terminate()
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 143
    assert "run the same command to continue: edistill cache-logits" in said.splitlines()[-1]
    assert any((cache / "parts").rglob("*.safetensors"))
    cache_logits(settings(large, LARGE))
    assert facts(cache) == facts(large / "whole")


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(large: Path) -> None:
    rng, kills = random.Random(0), 0
    for attempt in range(60):
        process = edistill(large, "cache-logits", settings=LARGE, sleep=0.2)
        started = time.monotonic()
        while process.poll() is None and not (large / "cache/.lock").is_file() and time.monotonic() < started + 60:
            time.sleep(0.01)
        try:
            # three times too soon to end, since a block sleeps for a second; then long enough to get on, on any machine
            process.wait(timeout=rng.uniform(0, 1) if attempt < 3 else rng.uniform(3, 9) + attempt)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        said = process.communicate()[0].decode()
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0, said
    assert kills >= 3
    assert facts(large / "cache") == facts(large / "whole")
