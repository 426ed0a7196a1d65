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
from decoded_helpers import photos
from ranks_helpers import in_ranks
from tiny import contents, killed_at, make_folder, refused, refused_and_kept, settings, with_cache

from ensemble_distill.caching import decoding
from ensemble_distill.caching.decoding import store_pictures
from ensemble_distill.chains.generations import train_chain
from ensemble_distill.data import decoded_blocks, image_folder
from ensemble_distill.data.decoded import is_decoded
from ensemble_distill.data.decoded_blocks import splits_in
from ensemble_distill.data.image_folder import ImageFolder
from ensemble_distill.runtime import files
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify
from ensemble_distill.workspace import Workspace

ON: dict[str, Any] = {"cache.decoded": True}
ROWS = {"train": 24, "validation": 20, "test": 9, "ood/noise": 5}
WRITE = 4  # crash points of one write


def small_blocks() -> None:
    decoded_blocks.BLOCK_BYTES = 216 * 8  # of pictures of 9 × 8: eight rows a block
    os.fsync = lambda descriptor: None


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_blocks, "BLOCK_BYTES", 216 * 8)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache`, made without decoded pictures. Do not write to it."""
    return with_cache(photos(tmp_path_factory.mktemp("decoded") / "tiny", rows=ROWS))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def on(folder: Path, **more: Any) -> Settings:
    return settings(folder, {**ON, "output.cache": "with", **{k.replace("__", "."): v for k, v in more.items()}})


def records(cache: Path) -> dict[str, bytes]:
    """All but the settings and the decoded pictures."""
    return {name: made for name, made in contents(cache, ["args.toml"]).items() if not name.startswith("decoded/")}


def blocks_of(cache: Path, split: str = "train") -> list[Path]:
    return sorted((cache / "decoded" / split).glob("*.safetensors"))


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


def test_caching_training_and_evaluation_are_the_same_to_the_byte(folder: Path) -> None:
    report = cache_logits(on(folder))
    assert report.decoded == sum(path.stat().st_size for path in (folder / "with/decoded").rglob("*.safetensors"))
    assert records(folder / "with") == records(folder / "cache")
    assert splits_in(folder / "with") == sorted(ROWS)
    found: dict[bool, Any] = {}
    for stored in (False, True):
        asked = on(folder, output__runs=f"runs-{stored}", cache__decoded=stored)
        heard = Silent()
        run = train(asked, progress=heard).folder
        assert not [text for text in heard.warnings if "decoded" in text]
        calibrate(asked)
        document = evaluate(asked, str(run))
        kept = {name: (run / name).read_bytes() for name in ("student.safetensors", "calibration.json")}
        found[stored] = kept, document.models, document.fidelity, document.ood
    assert found[False] == found[True]


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_the_number_of_loader_processes(folder: Path, workers: int) -> None:
    cache_logits(on(folder, train__workers=workers, views__transform="affine+noise"))
    cache_logits(settings(folder, {"output.cache": "without", "views.transform": "affine+noise"}))
    assert records(folder / "with") == records(folder / "without")
    run = train(on(folder, train__workers=workers, views__transform="affine+noise")).folder
    plain = {"output.cache": "without", "views.transform": "affine+noise", "output.name": "plain"}
    other = train(settings(folder, plain)).folder
    assert (run / "student.safetensors").read_bytes()[-500:] == (other / "student.safetensors").read_bytes()[-500:]


def test_nothing_is_decoded_again(folder: Path, reads: Counter[str]) -> None:
    cache_logits(on(folder))
    assert len(reads) == sum(ROWS.values())
    reads.clear()
    assert cache_logits(on(folder, views__count=3)).added
    few = sum(reads.values())  # the proof of what members saw, which is compared with what files give
    reads.clear()
    train(on(folder))
    evaluate(on(folder))
    assert sum(reads.values()) == 0 < few < sum(ROWS.values())


def test_a_finished_cache_gets_them_later_and_needs_no_lock_then(folder: Path) -> None:
    asked = settings(folder, ON)
    heard = Silent()
    before = records(folder / "cache")
    assert cache_logits(asked, progress=heard).added == len(ROWS)
    told = r"decoded pictures of train and .*: 58 rows, about [\d.]+ kB to write, [\d.,]+ GB free"
    assert re.search(told, str(heard.notes))
    assert records(folder / "cache") == before
    (folder / "cache/.lock").unlink()
    heard = Silent()
    assert cache_logits(asked, progress=heard).added == 0
    assert not heard.notes
    assert not (folder / "cache/.lock").exists()


def test_train_without_them_says_so_and_trains_the_same(folder: Path) -> None:
    heard = Silent()
    run = train(settings(folder, ON), progress=heard).folder
    told = [text for text in heard.warnings if "cache.decoded" in text]
    assert len(told) == 1
    assert "no decoded pictures of train: they are decoded as they are read" in told[0]
    cache_logits(settings(folder, ON))  # the remedy
    heard = Silent()
    again = train(settings(folder, {**ON, "output.name": "again"}), progress=heard).folder
    assert not [text for text in heard.warnings if "cache.decoded" in text]
    assert (run / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()


def test_limits_folds_rows_and_portions(folder: Path) -> None:
    np.save(folder / "folds.npy", np.arange(ROWS["train"]) % 2)
    np.save(folder / "rows.npy", np.array([8, 2, 5]))
    more = {
        "teachers.folds": "folds.npy",
        "views.transform": "crop-flip",
        "data.test": {"source": "data/test", "rows": "rows.npy"},
    }
    split = {"data.train": None, "data.validation": None, "data.all": "data/train", "data.split": {"validation": 0.3}}
    for at, changes in enumerate(({}, {"limit": 10}, {**split, "teachers.folds": None, "data.test": None})):
        caches = []
        for stored in (True, False):
            asked = settings(folder, {**more, **changes, "output.cache": f"{at}-{stored}", "cache.decoded": stored})
            cache_logits(asked)
            caches.append(records(Path(asked.output.cache)))
            sources = [Workspace(asked).source(name) for name in asked.splits()]
            assert all(is_decoded(source) == stored for source in sources)
            folds = Workspace(asked).folds
            assert folds is None or len(folds) == (10 if "limit" in changes else 24)
            caches.append(records(Path(asked.output.cache)))
        assert caches[0] == caches[1]


def test_a_chain_reads_those_of_the_ensembles_cache(folder: Path, reads: Counter[str]) -> None:
    cache_logits(on(folder))
    reads.clear()
    more = {"train__method": "ban", "train__generations": 2, "train__epochs": 2}
    heard = Silent()
    with_them = train_chain(on(folder, **more, output__name="one"), progress=heard).folder
    assert not [text for text in heard.warnings if "decoded" in text]
    assert not reads
    assert not list(with_them.rglob("decoded"))
    without = train_chain(on(folder, **more, output__name="other", cache__decoded=False)).folder
    for one in ("generation-1", "generation-2"):
        mine, theirs = ((chain / one / "student.safetensors").read_bytes() for chain in (with_them, without))
        assert mine == theirs


# --- kills, disks and processes -----------------------------------------------------------------------------------


def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_logits(on(folder, output__cache="whole"))
    whole, found = contents(folder / "whole", ["args.toml"]), []
    for point in itertools.count(0, 1):
        shutil.rmtree(folder / "with", ignore_errors=True)
        with killed_at(point, monkeypatch, folder / "with") as happened:
            cache_logits(on(folder))
        if not happened or (folder / "with/replay").exists():
            break  # what follows is the pass that other tests kill
        if contents(folder / "with") in found:
            continue
        found.append(contents(folder / "with"))
        cache_logits(on(folder))
        assert contents(folder / "with", ["args.toml"]) == whole, f"after a crash at point {point}"
    blocks = sum(len(blocks_of(folder / "whole", split)) for split in ROWS)
    assert blocks > 8
    assert point == WRITE * (1 + blocks + len(ROWS)), "the manifest, blocks, a record a split"


def test_only_what_is_not_there_is_decoded_after_a_kill(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    with killed_at(WRITE * 3 + 1, monkeypatch, folder / "with"):  # the manifest and two blocks of eight rows
        cache_logits(on(folder))
    assert len(blocks_of(folder / "with")) == 2
    wanted = {path.name: path.stat().st_mtime_ns for path in blocks_of(folder / "with")}
    cache_logits(on(folder))
    again = {path.name: path.stat().st_mtime_ns for path in blocks_of(folder / "with")}
    assert again.items() >= wanted.items()
    assert len(again) == 3


def test_a_block_that_is_torn_is_decoded_again(folder: Path) -> None:
    cache_logits(on(folder))
    whole = contents(folder / "with", ["args.toml"])
    first, second, _ = blocks_of(folder / "with")
    (folder / "with/decoded/train/pictures.json").unlink()
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(first.read_bytes())
    (folder / "with/decoded/train/0000000000-0000000099.safetensors").write_bytes(b"of another cut")
    assert cache_logits(on(folder)).added == 1
    assert contents(folder / "with", ["args.toml"]) == whole


def test_a_full_disk_at_each_block_names_it_and_there_is_nothing_to_lose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
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

        shutil.rmtree(folder / "with", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(files, "_write", full)
            with pytest.raises(OSError, match="No space left") as caught:
                cache_logits(on(folder))
        assert not list((folder / "with").rglob("*.part"))
        if "decoded" not in str(caught.value.filename):
            break
    assert count > 8
    cache_logits(on(folder))
    assert records(folder / "with") == records(folder / "cache")


def test_a_disk_that_has_no_room_is_told_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(free=5000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    with refused("Decoded pictures of train and", "fill about", "has 5.0 kB left", "Leave cache.decoded out"):
        cache_logits(on(folder))
    assert not (folder / "with").exists()
    with refused_and_kept(folder / "cache", "Decoded pictures of train"):
        cache_logits(settings(folder, ON))
    room.free = 10**9
    cache_logits(on(folder))
    room.free = 0
    assert cache_logits(on(folder)).added == 0, "there is nothing to write"


def cache_all(folder: Path, name: str) -> int:
    small_blocks()
    return cache_logits(settings(folder, {**ON, "output.cache": name})).added


def train_there(folder: Path, name: str, stored: bool) -> None:
    small_blocks()
    train(settings(folder, {"cache.decoded": stored, "output.cache": name, "output.name": f"run-{stored}"}))


@pytest.mark.thorough
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_store_the_bytes_of_one(folder: Path, world: int) -> None:
    cache_logits(on(folder))
    ended = in_ranks(world, cache_all, folder, "by-several")
    assert [(one.status, one.error) for one in ended] == [(0, "")] * world
    assert contents(folder / "by-several", ["args.toml"]) == contents(folder / "with", ["args.toml"])
    assert [one.result for one in in_ranks(world, cache_all, folder, "by-several")] == [0] * world
    if world == 2:
        blocks_of(folder / "by-several")[1].unlink()
        assert [one.result for one in in_ranks(2, cache_all, folder, "by-several")] == [1, 1]
        assert contents(folder / "by-several", ["args.toml"]) == contents(folder / "with", ["args.toml"])
        for stored in (True, False):
            assert [one.error for one in in_ranks(2, train_there, folder, "by-several", stored)] == ["", ""]
        runs = [folder / f"runs/run-{stored}/student.safetensors" for stored in (True, False)]
        assert runs[0].read_bytes() == runs[1].read_bytes()


# --- what is refused, verified and shown --------------------------------------------------------------------------


def test_a_damaged_store_is_refused_by_whoever_reads_it(folder: Path) -> None:
    cache_logits(on(folder))
    train(on(folder))
    whole = contents(folder / "with", ["args.toml"])
    of_test = blocks_of(folder / "with", "test")[0]
    kept = of_test.read_bytes()
    of_test.write_bytes(kept[:-1])
    with refused(str(of_test), f"it has {len(kept) - 1:,} bytes, and pictures.json says {len(kept):,}", "Delete that"):
        evaluate(on(folder))
    of_test.write_bytes(kept)
    block = blocks_of(folder / "with")[1]
    content = bytearray(block.read_bytes())
    content[-3] ^= 64
    block.write_bytes(content)
    for command in (train, cache_logits):
        with refused(str(block), "its sha256 is", "Delete that file and run edistill cache-logits"):
            command(on(folder, output__name="another"))  # type: ignore[operator]
    train(on(folder, cache__decoded=False, output__name="without"))
    problem = next(check for check in doctor(lambda: on(folder)).checks if check["problem"])
    assert str(block) in problem["told"]
    found = verify(folder / "with")
    assert len(found.problems) == 1
    assert found.remedy is not None
    assert "delete the folder of the split" in found.remedy
    block.unlink()
    assert verify(folder / "with").problems == [f"{block} is missing"]
    assert cache_logits(on(folder)).added == 1
    assert contents(folder / "with", ["args.toml"]) == whole
    report = verify(folder / "with")
    assert (report.problems, report.decoded, report.remedy) == ([], len(ROWS), None)


def test_pictures_of_other_data_are_refused_and_made_again(folder: Path) -> None:
    cache_logits(on(folder))
    one = next((folder / "data/test/a").iterdir())
    shutil.copy(one, one.with_name("more.png"))
    stored = folder / "with/decoded/test"
    with refused(str(stored), "(9 rows)", "data.test", "(10 rows)", f"Delete {stored} and run edistill cache-logits"):
        evaluate(on(folder), str(train(on(folder)).folder))
    with refused("test data", "edistill cache-logits --overwrite"):
        cache_logits(on(folder))
    cache_logits(on(folder), overwrite=True)
    assert Workspace(on(folder)).source("test").item(9).x.any()
    # what stands there of a split that never had any records
    more = {"data__calibration": "data/train"}
    shutil.copytree(folder / "with/decoded/validation", folder / "with/decoded/calibration")
    with refused_and_kept(
        folder / "with", "decoded/calibration", "data.calibration", "(20 rows)", "(24 rows)", "Delete"
    ):
        cache_logits(on(folder, **more))
    shutil.rmtree(folder / "with/decoded/calibration")  # the remedy
    cache_logits(on(folder, **more))
    assert is_decoded(Workspace(on(folder, **more)).source("calibration"))


def test_a_store_of_another_cache_in_its_place_is_refused(folder: Path) -> None:
    cache_logits(on(folder))
    shutil.rmtree(folder / "with/decoded/test")
    shutil.copytree(folder / "with/decoded/validation", folder / "with/decoded/test")
    with refused("decoded/test", "(20 rows)", "(9 rows)", "Delete"):
        Workspace(on(folder)).source("test")


def test_overwriting_makes_them_anew_and_without_the_key_they_go(folder: Path) -> None:
    cache_logits(on(folder))
    whole = contents(folder / "with", ["args.toml"])
    blocks_of(folder / "with")[0].write_bytes(b"")
    cache_logits(on(folder), overwrite=True)
    assert contents(folder / "with", ["args.toml"]) == whole
    cache_logits(on(folder, cache__decoded=False), overwrite=True)
    assert not (folder / "with/decoded").exists()


def test_inspect_and_doctor_tell_of_them(folder: Path) -> None:
    def told() -> str:
        found = doctor(lambda: on(folder))
        assert not found.problems
        return next(check["told"] for check in found.checks if check["what"] == "cache.decoded")

    before = doctor(lambda: on(folder)).forecast[0]["bytes"]
    assert re.fullmatch(r"about \d+\.\d kB, of train, validation, test, ood/noise", told())
    assert before > doctor(lambda: on(folder, cache__decoded=False)).forecast[0]["bytes"] + 5000
    cache_logits(on(folder))
    assert told() == "pictures of train, validation, test, ood/noise are stored"
    found = inspect(folder / "with")["decoded"]
    assert found.keys() == ROWS.keys()
    assert found["train"]["rows"] == ROWS["train"]
    assert found["train"]["bytes"] == sum(path.stat().st_size for path in blocks_of(folder / "with"))
    assert "decoded" not in inspect(folder / "cache")
    assert "decoded pictures" in inspect(blocks_of(folder / "with")[0])["what"]
    assert "a part of" in inspect(folder / "with/decoded")["what"]


def test_where_nothing_is_decoded_the_key_is_told_to_do_nothing(tmp_path: Path) -> None:
    arrays = make_folder(tmp_path / "arrays", members=2, rows={"train": 12, "validation": 6})
    heard = Silent()
    report = cache_logits(settings(arrays, ON), progress=heard)
    assert "cache.decoded is set and does nothing: the pictures of an .npz are decoded already" in str(heard.warnings)
    assert report.decoded == 0
    assert not (arrays / "cache/decoded").exists()
    heard = Silent()
    train(settings(arrays, ON), progress=heard)
    assert "decoded" not in str(heard.warnings)


def test_a_row_that_does_not_decode_is_named_and_what_was_decoded_is_kept(folder: Path) -> None:
    torn = sorted((folder / "data/train/b").iterdir())[-1]
    whole = torn.read_bytes()
    torn.write_bytes(whole[:40])
    with refused(torn.name, "does not decode"):
        cache_logits(on(folder))
    assert blocks_of(folder / "with") or not (folder / "with/manifest.json").exists()
    torn.write_bytes(whole)
    cache_logits(on(folder))
    assert records(folder / "with") == records(folder / "cache")


def test_the_loaders_batches_are_bounded_by_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    flat = decoding._flat
    monkeypatch.setattr(decoding, "BYTES", 216 * 3)
    monkeypatch.setattr(decoding, "_flat", lambda rows: (sizes.append(len(rows)), flat(rows))[1])
    cache_logits(on(folder))
    assert max(sizes) == 3
    assert store_pictures is decoding.store_pictures
