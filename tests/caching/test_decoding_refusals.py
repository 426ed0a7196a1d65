"""`cache.decoded`: stores that are damaged or of other data are refused, and what is there is told."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from decoding_helpers import ON, ROWS, blocks_of, on, records
from tiny import contents, make_folder, refused, refused_and_kept, settings

from ensemble_distill.caching import decoding
from ensemble_distill.caching.decoding import store_pictures
from ensemble_distill.data import decoded_blocks
from ensemble_distill.data.decoded import is_decoded
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify
from ensemble_distill.workspace import Workspace


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_blocks, "BLOCK_BYTES", 216 * 8)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- what is refused, verified and shown --------------------------------------------------------------------------


def test_a_damaged_store_is_refused_by_whoever_reads_it(pictures: Path) -> None:
    cache_logits(on(pictures))
    train(on(pictures))
    whole = contents(pictures / "with", ["args.toml"])
    of_test = blocks_of(pictures / "with", "test")[0]
    kept = of_test.read_bytes()
    of_test.write_bytes(kept[:-1])
    with refused(str(of_test), f"it has {len(kept) - 1:,} bytes, and pictures.json says {len(kept):,}", "Delete that"):
        evaluate(on(pictures))
    of_test.write_bytes(kept)
    block = blocks_of(pictures / "with")[1]
    content = bytearray(block.read_bytes())
    content[-3] ^= 64
    block.write_bytes(content)
    for command in (train, cache_logits):
        with refused(str(block), "its sha256 is", "Delete that file and run edistill cache-logits"):
            command(on(pictures, output__name="another"))  # type: ignore[operator]
    train(on(pictures, cache__decoded=False, output__name="without"))
    problem = next(check for check in doctor(lambda: on(pictures)).checks if check["problem"])
    assert str(block) in problem["told"]
    found = verify(pictures / "with")
    assert len(found.problems) == 1
    assert found.remedy is not None
    assert "delete the folder of the split" in found.remedy
    block.unlink()
    assert verify(pictures / "with").problems == [f"{block} is missing"]
    assert cache_logits(on(pictures)).added == 1
    assert contents(pictures / "with", ["args.toml"]) == whole
    report = verify(pictures / "with")
    assert (report.problems, report.decoded, report.remedy) == ([], len(ROWS), None)


def test_pictures_of_other_data_are_refused_and_made_again(pictures: Path) -> None:
    cache_logits(on(pictures))
    one = next((pictures / "data/test/a").iterdir())
    shutil.copy(one, one.with_name("more.png"))
    stored = pictures / "with/decoded/test"
    with refused(str(stored), "(9 rows)", "data.test", "(10 rows)", "run edistill cache-logits --overwrite"):
        evaluate(on(pictures), str(train(on(pictures)).folder))
    with refused("test data", "edistill cache-logits --overwrite"):
        cache_logits(on(pictures))
    cache_logits(on(pictures), overwrite=True)
    assert Workspace(on(pictures)).source("test").item(9).x.any()
    # what stands there of a split that never had any records
    more = {"data__calibration": "data/train"}
    shutil.copytree(pictures / "with/decoded/validation", pictures / "with/decoded/calibration")
    with refused_and_kept(
        pictures / "with", "decoded/calibration", "data.calibration", "(20 rows)", "(24 rows)", "--overwrite"
    ):
        cache_logits(on(pictures, **more))
    cache_logits(on(pictures, **more), overwrite=True)
    assert is_decoded(Workspace(on(pictures, **more)).source("calibration"))


def test_a_store_of_another_cache_in_its_place_is_refused(pictures: Path) -> None:
    cache_logits(on(pictures))
    shutil.rmtree(pictures / "with/decoded/test")
    shutil.copytree(pictures / "with/decoded/validation", pictures / "with/decoded/test")
    with refused("decoded/test", "(20 rows)", "(9 rows)", "--overwrite"):
        Workspace(on(pictures)).source("test")


def test_overwriting_makes_them_anew_and_without_the_key_they_go(pictures: Path) -> None:
    cache_logits(on(pictures))
    whole = contents(pictures / "with", ["args.toml"])
    blocks_of(pictures / "with")[0].write_bytes(b"")
    cache_logits(on(pictures), overwrite=True)
    assert contents(pictures / "with", ["args.toml"]) == whole
    cache_logits(on(pictures, cache__decoded=False), overwrite=True)
    assert not (pictures / "with/decoded").exists()


def test_inspect_and_doctor_tell_of_them(pictures: Path) -> None:
    def told() -> str:
        found = doctor(lambda: on(pictures))
        assert not found.problems
        return next(check["told"] for check in found.checks if check["what"] == "cache.decoded")

    before = doctor(lambda: on(pictures)).forecast[0]["bytes"]
    assert re.fullmatch(r"about \d+\.\d kB, of train, validation, test, ood/noise", told())
    assert before > doctor(lambda: on(pictures, cache__decoded=False)).forecast[0]["bytes"] + 5000
    cache_logits(on(pictures))
    assert told() == "pictures of train, validation, test, ood/noise are stored"
    found = inspect(pictures / "with")["decoded"]
    assert found.keys() == ROWS.keys()
    assert found["train"]["rows"] == ROWS["train"]
    assert found["train"]["bytes"] == sum(path.stat().st_size for path in blocks_of(pictures / "with"))
    assert "decoded" not in inspect(pictures / "cache")
    assert "decoded pictures" in inspect(blocks_of(pictures / "with")[0])["what"]
    assert "a part of" in inspect(pictures / "with/decoded")["what"]


def test_where_nothing_is_decoded_the_key_is_told_to_do_nothing(tmp_path: Path) -> None:
    arrays = make_folder(tmp_path / "arrays", members=2, rows={"train": 12, "validation": 6})
    heard = Silent()
    report = cache_logits(settings(arrays, ON), progress=heard)
    assert "cache.decoded is set and does nothing: the pictures of an .npz are decoded already" in str(heard.warnings)
    assert report.decoded == 0
    assert not (arrays / "cache/decoded").exists()
    told = next(check["told"] for check in doctor(lambda: settings(arrays, ON)).checks if "decoded" in check["what"])
    assert told == "does nothing: the pictures of an .npz are decoded already"
    heard = Silent()
    train(settings(arrays, ON), progress=heard)
    assert "decoded" not in str(heard.warnings)


def test_a_row_that_does_not_decode_is_named_and_what_was_decoded_is_kept(pictures: Path) -> None:
    torn = sorted((pictures / "data/train/b").iterdir())[-1]
    whole = torn.read_bytes()
    torn.write_bytes(whole[:40])
    with refused(torn.name, "does not decode"):
        cache_logits(on(pictures))
    assert blocks_of(pictures / "with") or not (pictures / "with/manifest.json").exists()
    torn.write_bytes(whole)
    cache_logits(on(pictures))
    assert records(pictures / "with") == records(pictures / "cache")


def test_the_loaders_batches_are_bounded_by_bytes(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    flat = decoding._flat
    monkeypatch.setattr(decoding, "BYTES", 216 * 3)
    monkeypatch.setattr(decoding, "_flat", lambda rows: (sizes.append(len(rows)), flat(rows))[1])
    cache_logits(on(pictures))
    assert max(sizes) == 3
    assert store_pictures is decoding.store_pictures
