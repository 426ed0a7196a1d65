"""`cache.decoded`: pictures are decoded once, into the cache, and everything that reads them gives the same bytes."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from decoding_helpers import ON, ROWS, blocks_of, on, records
from ranks_helpers import in_ranks
from tiny import contents, killed_at, refused, refused_and_kept, settings

from ensemble_distill.chains.generations import train_chain
from ensemble_distill.data import decoded_blocks, image_folder
from ensemble_distill.data.decoded import is_decoded
from ensemble_distill.data.decoded_blocks import splits_in
from ensemble_distill.data.image_folder import ImageFolder
from ensemble_distill.runtime import files
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train
from ensemble_distill.workspace import Workspace

WRITE = 4  # crash points of one write


def small_blocks() -> None:
    decoded_blocks.BLOCK_BYTES = 216 * 8  # of pictures of 9 × 8: eight rows a block
    os.fsync = lambda descriptor: None


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_blocks, "BLOCK_BYTES", 216 * 8)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Files that are decoded."""
    counted: Counter[str] = Counter()
    decode = ImageFolder._decoded

    def count(self: ImageFolder, row: int) -> Any:
        counted[f"{self.root.name}/{self.names[row]}"] += 1
        return decode(self, row)

    monkeypatch.setattr(image_folder.ImageFolder, "_decoded", count)
    return counted


# --- the same bytes ---------------------------------------------------------------------------------------------


def test_caching_training_and_evaluation_are_the_same_to_the_byte(pictures: Path) -> None:
    report = cache_logits(on(pictures))
    assert report.decoded == sum(path.stat().st_size for path in (pictures / "with/decoded").rglob("*.safetensors"))
    assert records(pictures / "with") == records(pictures / "cache")
    assert splits_in(pictures / "with") == sorted(ROWS)
    found: dict[bool, Any] = {}
    for stored in (False, True):
        asked = on(pictures, output__runs=f"runs-{stored}", cache__decoded=stored)
        heard = Silent()
        run = train(asked, progress=heard).folder
        assert not [text for text in heard.warnings if "decoded" in text]
        calibrate(asked)
        document = evaluate(asked, str(run))
        kept = {name: (run / name).read_bytes() for name in ("student.safetensors", "calibration.json")}
        found[stored] = kept, document.models, document.fidelity, document.ood
    assert found[False] == found[True]


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_the_number_of_loader_processes(pictures: Path, workers: int) -> None:
    cache_logits(on(pictures, train__workers=workers, views__transform="affine+noise"))
    cache_logits(settings(pictures, {"output.cache": "without", "views.transform": "affine+noise"}))
    assert records(pictures / "with") == records(pictures / "without")
    run = train(on(pictures, train__workers=workers, views__transform="affine+noise")).folder
    plain = {"output.cache": "without", "views.transform": "affine+noise", "output.name": "plain"}
    other = train(settings(pictures, plain)).folder
    assert (run / "student.safetensors").read_bytes()[-500:] == (other / "student.safetensors").read_bytes()[-500:]


def test_nothing_is_decoded_again(pictures: Path, reads: Counter[str]) -> None:
    cache_logits(on(pictures))
    assert len(reads) == sum(ROWS.values())
    reads.clear()
    assert cache_logits(on(pictures, views__count=3)).added
    few = sum(reads.values())  # the proof of what members saw, which is compared with what files give
    reads.clear()
    train(on(pictures))
    evaluate(on(pictures))
    assert sum(reads.values()) == 0 < few < sum(ROWS.values())


def test_a_finished_cache_gets_them_later_and_needs_no_lock_then(pictures: Path) -> None:
    asked = settings(pictures, ON)
    heard = Silent()
    before = records(pictures / "cache")
    assert cache_logits(asked, progress=heard).added == len(ROWS)
    told = r"decoded pictures of train and .*: 58 rows, about [\d.]+ kB to write, [\d.,]+ GB free"
    assert re.search(told, str(heard.notes))
    assert records(pictures / "cache") == before
    (pictures / "cache/.lock").unlink()
    heard = Silent()
    assert cache_logits(asked, progress=heard).added == 0
    assert not heard.notes
    assert not (pictures / "cache/.lock").exists()


def test_train_without_them_says_so_and_trains_the_same(pictures: Path) -> None:
    heard = Silent()
    run = train(settings(pictures, ON), progress=heard).folder
    told = [text for text in heard.warnings if "cache.decoded" in text]
    assert len(told) == 1
    assert "no decoded pictures of train: they are decoded as they are read" in told[0]
    cache_logits(settings(pictures, ON))  # the remedy
    heard = Silent()
    again = train(settings(pictures, {**ON, "output.name": "again"}), progress=heard).folder
    assert not [text for text in heard.warnings if "cache.decoded" in text]
    assert (run / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()


def test_limits_folds_rows_and_portions(pictures: Path) -> None:
    np.save(pictures / "folds.npy", np.arange(ROWS["train"]) % 2)
    np.save(pictures / "rows.npy", np.array([8, 2, 5]))
    more = {
        "teachers.folds": "folds.npy",
        "views.transform": "crop-flip",
        "data.test": {"source": "data/test", "rows": "rows.npy"},
    }
    split = {"data.train": None, "data.validation": None, "data.all": "data/train", "data.split": {"validation": 0.3}}
    for at, changes in enumerate(({}, {"limit": 10}, {**split, "teachers.folds": None, "data.test": None})):
        caches = []
        for stored in (True, False):
            asked = settings(pictures, {**more, **changes, "output.cache": f"{at}-{stored}", "cache.decoded": stored})
            cache_logits(asked)
            caches.append(records(Path(asked.output.cache)))
            sources = [Workspace(asked).source(name) for name in asked.splits()]
            assert all(is_decoded(source) == stored for source in sources)
            folds = Workspace(asked).folds
            assert folds is None or len(folds) == (10 if "limit" in changes else 24)
            caches.append(records(Path(asked.output.cache)))
        assert caches[0] == caches[1]


def test_a_chain_reads_those_of_the_ensembles_cache(pictures: Path, reads: Counter[str]) -> None:
    cache_logits(on(pictures))
    reads.clear()
    more = {"train__method": "ban", "train__generations": 2, "train__epochs": 2}
    heard = Silent()
    with_them = train_chain(on(pictures, **more, output__name="one"), progress=heard).folder
    assert not [text for text in heard.warnings if "decoded" in text]
    assert not reads
    assert not list(with_them.rglob("decoded"))
    without = train_chain(on(pictures, **more, output__name="other", cache__decoded=False)).folder
    for one in ("generation-1", "generation-2"):
        mine, theirs = ((chain / one / "student.safetensors").read_bytes() for chain in (with_them, without))
        assert mine == theirs


# --- kills, disks and processes -----------------------------------------------------------------------------------


def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_logits(on(pictures, output__cache="whole"))
    whole, found = contents(pictures / "whole", ["args.toml"]), []
    for point in itertools.count(0, 1):
        shutil.rmtree(pictures / "with", ignore_errors=True)
        with killed_at(point, monkeypatch, pictures / "with") as happened:
            cache_logits(on(pictures))
        if not happened or (pictures / "with/replay").exists():
            break  # what follows is the pass that other tests kill
        if contents(pictures / "with") in found:
            continue
        found.append(contents(pictures / "with"))
        cache_logits(on(pictures))
        assert contents(pictures / "with", ["args.toml"]) == whole, f"after a crash at point {point}"
    blocks = sum(len(blocks_of(pictures / "whole", split)) for split in ROWS)
    assert blocks > 8
    assert point == WRITE * (1 + blocks + len(ROWS)), "the manifest, blocks, a record a split"


def test_only_what_is_not_there_is_decoded_after_a_kill(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    with killed_at(WRITE * 3 + 1, monkeypatch, pictures / "with"):  # the manifest and two blocks of eight rows
        cache_logits(on(pictures))
    assert len(blocks_of(pictures / "with")) == 2
    wanted = {path.name: path.stat().st_mtime_ns for path in blocks_of(pictures / "with")}
    cache_logits(on(pictures))
    again = {path.name: path.stat().st_mtime_ns for path in blocks_of(pictures / "with")}
    assert again.items() >= wanted.items()
    assert len(again) == 3


def test_a_block_that_is_torn_is_decoded_again(pictures: Path) -> None:
    cache_logits(on(pictures))
    whole = contents(pictures / "with", ["args.toml"])
    first, second, _ = blocks_of(pictures / "with")
    (pictures / "with/decoded/train/pictures.json").unlink()
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(first.read_bytes())
    (pictures / "with/decoded/train/0000000000-0000000099.safetensors").write_bytes(b"of another cut")
    assert cache_logits(on(pictures)).added == 1
    assert contents(pictures / "with", ["args.toml"]) == whole


def test_a_full_disk_at_each_block_names_it_and_there_is_nothing_to_lose(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files._write
    for count in itertools.count(1):
        left = [None] * count

        def full(path: Path, chunks: Iterable[bytes], left: list[None] = left) -> None:
            if not left:
                path.write_bytes(b"as much as there was room for")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left.pop()
            write(path, chunks)

        shutil.rmtree(pictures / "with", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(files, "_write", full)
            with pytest.raises(OSError, match="No space left") as caught:
                cache_logits(on(pictures))
        assert not list((pictures / "with").rglob("*.part"))
        if "decoded" not in str(caught.value.filename):
            break
    assert count > 8
    cache_logits(on(pictures))
    assert records(pictures / "with") == records(pictures / "cache")


def test_a_disk_that_has_no_room_is_told_before_anything_is_written(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(free=5000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    with refused("Decoded pictures of train and", "fill about", "has 5.0 kB left", "Leave cache.decoded out"):
        cache_logits(on(pictures))
    assert not (pictures / "with").exists()
    with refused_and_kept(pictures / "cache", "Decoded pictures of train"):
        cache_logits(settings(pictures, ON))
    room.free = 10**9
    cache_logits(on(pictures))
    room.free = 0
    assert cache_logits(on(pictures)).added == 0, "there is nothing to write"


def cache_all(folder: Path, name: str) -> int:
    small_blocks()
    return cache_logits(settings(folder, {**ON, "output.cache": name})).added


def train_there(folder: Path, name: str, stored: bool) -> None:
    small_blocks()
    train(settings(folder, {"cache.decoded": stored, "output.cache": name, "output.name": f"run-{stored}"}))


@pytest.mark.thorough
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_store_the_bytes_of_one(pictures: Path, world: int) -> None:
    cache_logits(on(pictures))
    ended = in_ranks(world, cache_all, pictures, "by-several")
    assert [(one.status, one.error) for one in ended] == [(0, "")] * world
    assert contents(pictures / "by-several", ["args.toml"]) == contents(pictures / "with", ["args.toml"])
    assert [one.result for one in in_ranks(world, cache_all, pictures, "by-several")] == [0] * world
    if world == 2:
        blocks_of(pictures / "by-several")[1].unlink()
        assert [one.result for one in in_ranks(2, cache_all, pictures, "by-several")] == [1, 1]
        assert contents(pictures / "by-several", ["args.toml"]) == contents(pictures / "with", ["args.toml"])
        for stored in (True, False):
            assert [one.error for one in in_ranks(2, train_there, pictures, "by-several", stored)] == ["", ""]
        runs = [pictures / f"runs/run-{stored}/student.safetensors" for stored in (True, False)]
        assert runs[0].read_bytes() == runs[1].read_bytes()
