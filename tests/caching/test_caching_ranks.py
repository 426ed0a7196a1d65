"""Several processes of torchrun make a cache together: the bytes of one process, also after one of them was killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from ods_helpers import ODS
from ranks_helpers import in_ranks
from tiny import contents, make_folder, save_data, save_member, settings

from ensemble_distill.cache import writer
from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.caching.filling import dealt
from ensemble_distill.runtime import files, ranks
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.ranks import Rank
from ensemble_distill.workflows.cache_logits import cache_logits

SAMPLED = {"cache.records": "sampled", "cache.samples": 2}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sampled": SAMPLED,
    "moved": ODS,
    "one block": {"cache.batch-size": 64},
}


def facts(cache: Path) -> dict[str, bytes]:
    return contents(cache, ["args.toml"])


def small_blocks() -> None:
    writer.BLOCK_ROWS = 16  # of the 40 training rows: 16, 16 and 8; in a process of its own
    os.fsync = lambda descriptor: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, and a cache of each kind made by one process."""
    folder = make_folder(tmp_path_factory.mktemp("ranks") / "tiny", members=2, rows={"train": 40, "validation": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for kind, sets in KINDS.items():
            cache_logits(settings(folder, {**sets, "output.cache": f"alone/{kind}"}))
    return folder


# --- who does what ----------------------------------------------------------------------------------------------


def test_each_block_is_one_ranks_and_few_blocks_are_dealt_by_views() -> None:
    keys = [key for view in range(5) for key in (SampleKey("train", view), RecordKey("train", "a", view))]
    for world, count in [(2, 7), (3, 3), (3, 1), (4, 2), (9, 1), (2, 0)]:
        work = [(Block(16 * at, 16 * at + 16), tuple(keys)) for at in range(count)]
        parts = [dealt(work, Rank(index, world)) for index in range(world)]
        every = [(block, key) for part in parts for block, some in part for key in some]
        assert sorted(every, key=str) == sorted(((block, key) for block, _ in work for key in keys), key=str)
        if count:
            assert sum(1 for part in parts if part) == min(world, 5 * count)
        for part in parts:
            for _, some in part:
                assert {k.view for k in some if isinstance(k, SampleKey)} == {k.view for k in some}


# --- the same bytes ---------------------------------------------------------------------------------------------


def cache_all(folder: Path, name: str) -> list[int]:
    small_blocks()
    return [
        cache_logits(settings(folder, {**sets, "output.cache": f"{name}/{kind}"})).added for kind, sets in KINDS.items()
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("world", [2, 3])
def test_the_bytes_are_those_of_one_process(folder: Path, world: int) -> None:
    ended = in_ranks(world, cache_all, folder, f"by {world}")
    assert [(one.status, one.error) for one in ended] == [(0, "")] * world
    assert all(one.result == ended[0].result for one in ended)
    for kind in KINDS:
        assert facts(folder / f"by {world}" / kind) == facts(folder / "alone" / kind), kind
        assert (folder / f"by {world}" / kind / "args.toml").is_file()
    again = in_ranks(1 if world == 3 else 2, cache_all, folder, f"by {world}")
    assert all(one.result == [0] * len(KINDS) for one in again), "all are up to date, for any number"


def extend(folder: Path, sets: dict[str, Any], name: str) -> tuple[int, list[str]]:
    heard = Silent()
    added = cache_logits(settings(folder, {**sets, "output.cache": name}), progress=heard).added
    return added, heard.warnings


@pytest.mark.thorough
def test_a_member_a_view_and_a_split_that_come_later_are_added_by_all(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    cache_logits(settings(own, {**SAMPLED, "output.cache": "whole"}))
    shutil.copytree(own / "whole", own / "grown")
    save_member(own, 7)
    save_data(own, "test", 5)
    more = {**SAMPLED, "views.count": 3, "data.test": "data/test.npz"}
    alone = extend(own, more, "whole")
    ended = in_ranks(2, extend, own, more, "grown")
    assert [one.error for one in ended] == ["", ""]
    assert facts(own / "grown") == facts(own / "whole")
    assert ended[0].result[0] == alone[0]
    told = [text for text in ended[0].result[1] if "came after" in text]
    assert told == [text for text in alone[1] if "came after" in text], "of all rows, whoever asked about them"
    assert told


# --- kills ------------------------------------------------------------------------------------------------------


def cache_until(folder: Path, sets: dict[str, Any], victim: int, point: int) -> None:
    """One process kills itself at a point of its writes."""
    small_blocks()
    passed = 0

    def count(step: str, path: Path) -> None:
        nonlocal passed
        if ranks.current().index == victim and passed == point:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    files.crash_point = count
    cache_logits(settings(folder, {**sets, "output.cache": "killed"}))


def cache_on(folder: Path, sets: dict[str, Any]) -> None:
    small_blocks()
    cache_logits(settings(folder, {**sets, "output.cache": "killed"}))


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "victim"), [("dense", 0), ("sampled", 1), ("moved", 2)])
def test_a_pass_of_which_a_process_was_killed_goes_on_with_another_number(folder: Path, kind: str, victim: int) -> None:
    shutil.rmtree(folder / "killed", ignore_errors=True)
    point = random.Random(f"{kind} {victim}").randrange(4 if victim else 24)  # the first one writes most
    ended = in_ranks(3, cache_until, folder, KINDS[kind], victim, point)
    assert ended[victim].status == -signal.SIGKILL, f"point {point}"
    others = [one for index, one in enumerate(ended) if index != victim]
    assert sum("LostError" in one.error for one in others) == 1, ended
    assert all(one.error.startswith(("LostError", "EndedError")) or one.status == 2 for one in others), ended
    assert facts(folder / "killed") != facts(folder / "alone" / kind)
    assert [one.error for one in in_ranks(2, cache_on, folder, KINDS[kind])] == ["", ""]
    assert facts(folder / "killed") == facts(folder / "alone" / kind)
