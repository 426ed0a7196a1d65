"""Loader processes where nobody says how many: tried where they can win something, told, and of no effect on a byte."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from decoded_helpers import photos
from ranks_helpers import in_ranks
from tiny import contents, settings

from ensemble_distill.runtime import workers
from ensemble_distill.runtime.loading import _loading
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.runtime.workers import at_once, by_trial, offered, rate_of
from ensemble_distill.training import forecast
from ensemble_distill.training import workers as of_training
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

NOBODY: dict[str, Any] = {"train.workers": None}


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores_here", lambda: 4)


# --- the rule ---------------------------------------------------------------------------------------------------


def test_as_many_are_tried_as_keep_up_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 10**6
    for rendering, computing, wanted in (
        (0.01, 0.09, 0),  # a tenth of the time: there is nothing to win
        (0.019, 0.081, 0),
        (0.021, 0.079, 1),
        (0.1, 0.11, 1),
        (0.1, 0.09, 2),
        (0.1, 0.04, 3),
        (0.1, 0.001, 4),  # as many as there are cores
        (0.1, 0.0, 4),
        (0.0, 0.1, 0),
    ):
        assert offered(rendering, computing, many) == wanted, (rendering, computing)
    assert offered(0.001, 0.001, 14_999) == 0, "of 30 seconds a second is too much"
    assert offered(0.001, 0.001, 15_001) == 2
    monkeypatch.setattr(workers, "cores_here", lambda: 1)
    assert offered(0.1, 0.1, many) == 0
    monkeypatch.setattr(workers, "cores_here", lambda: 64)
    assert offered(0.1, 0.0, many) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert offered(0.1, 0.0, many) == 2, "each process of a machine has its share"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert offered(0.1, 0.0, many) == 0


def test_none_are_tried_where_each_would_import_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spawning:
        def get_start_method(self) -> str:
            return "spawn"

    monkeypatch.setattr("multiprocessing.get_context", Spawning)
    assert offered(0.1, 0.1, 10**6) == 0


def test_they_are_taken_where_they_are_clearly_faster() -> None:
    for alone, beside, wanted in ((100.0, 114.0, 0), (100.0, 116.0, 3), (100.0, 20.0, 0), (0.0, 5.0, 3), (0.0, 0.0, 0)):
        heard = Silent()
        found = by_trial("caching", 3, lambda n, a=alone, b=beside: b if n == 3 else a, heard)  # type: ignore[misc]
        assert found == wanted
        rates = f"since in a trial 3 brought {beside:,.0f} rows/s, and none {alone:,.0f} (--workers)."
        assert heard.notes == [f"caching: {wanted} loader processes, {rates}"]
    heard = Silent()

    def never(_: int) -> float:
        raise AssertionError("there is nothing to try")

    assert by_trial("caching", 0, never, heard) == 0
    assert heard.notes == []


def test_a_batch_of_a_trial_is_short() -> None:
    assert at_once(0.001, 0.001, 256) == 30
    assert at_once(1.0, 1.0, 256) == 1
    assert at_once(1e-6, 1e-6, 256) == at_once(0.0, 0.0, 256) == 256


def steps(seconds: list[float], ended: list[bool]) -> Generator[int]:
    try:
        for each in seconds:
            time.sleep(each)
            yield 10
    finally:
        ended.append(True)


def test_rates_are_from_the_end_of_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    started = time.monotonic()
    found = rate_of(steps([0.2] + [0.02] * 1000, ended))
    assert 10 / 0.05 < found <= 10 / 0.02
    assert time.monotonic() - started < 3 * workers.SECONDS + 0.5
    assert rate_of(steps([2 * workers.SECONDS + 0.05, 0.01, 0.01], ended)) == 0, "it takes too long to start"
    assert rate_of(steps([0.01], ended)) == 0
    assert rate_of(steps([], ended)) == 0
    assert ended == [True] * 4


def test_the_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.undo()
    assert 1 <= workers.cores_here() <= (os.cpu_count() or 1)


# --- the whole road ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photos(tmp_path_factory.mktemp("workers") / "tiny", rows={"train": 40, "validation": 12})
    cache_logits(settings(folder))
    train(settings(folder, {"train.epochs": 4}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def notes(heard: Silent) -> list[str]:
    return [note for note in heard.notes if "loader process" in note]


def tried(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """Whatever there is to do, and however fast it is."""
    for name, value in (("LONG", 0.0), ("SHARE", 0.0), ("GAIN", gain), ("SECONDS", 0.1), ("A_BATCH", 1e-9)):
        monkeypatch.setattr(workers, name, value)
    for module in (forecast, of_training):
        monkeypatch.setattr(module, "WORTH_TIMING", 0)
    monkeypatch.setattr("ensemble_distill.training.rows.RENDERED", 0)


@pytest.mark.parametrize("gain", [-1.0, 1e9])
def test_a_pass_tells_how_many_and_is_the_same_to_the_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    tried(monkeypatch, gain)
    heard = Silent()
    cache_logits(settings(folder, {**NOBODY, "output.cache": "again"}), progress=heard)
    (told,) = notes(heard)
    assert told.startswith("caching: 0 loader processes, ") == (gain > 1)
    assert contents(folder / "again", ["args.toml"]) == contents(folder / "cache", ["args.toml"])
    assert not _loading, "none of the trial is left"
    heard = Silent()
    assert cache_logits(settings(folder, NOBODY), progress=heard).added == 0
    cache_logits(settings(folder, {"output.cache": "asked"}), progress=heard)
    assert not notes(heard), "0 was asked for"


@pytest.mark.parametrize("gain", [-1.0, 1e9])
def test_a_training_tells_how_many_and_is_the_same_to_the_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    tried(monkeypatch, gain)
    heard = Silent()
    run = train(settings(folder, {**NOBODY, "train.epochs": 4, "output.name": "again"}), progress=heard).folder
    (told,) = notes(heard)
    assert told.startswith("training: 0 loader processes, ") == (gain > 1)
    assert (run / "student.safetensors").read_bytes() == (folder / "runs/hydra-s0/student.safetensors").read_bytes()
    assert not _loading


@pytest.mark.parametrize("gain", [-1.0, 1e9])
def test_decoding_tells_how_many_and_is_the_same_to_the_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    cache_logits(settings(folder, {"cache.decoded": True, "output.cache": "asked"}))
    tried(monkeypatch, gain)
    heard = Silent()
    cache_logits(settings(folder, {**NOBODY, "cache.decoded": True, "output.cache": "again"}), progress=heard)
    assert [note.partition(":")[0] for note in notes(heard)] == ["decoding train", "decoding validation", "caching"]
    assert [": 0 loader processes" in note for note in notes(heard)] == [gain > 1] * 3
    assert contents(folder / "again", ["args.toml"]) == contents(folder / "asked", ["args.toml"])
    assert not _loading


def test_none_are_tried_where_rows_are_kept_rendered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(monkeypatch, -1.0)
    monkeypatch.setattr("ensemble_distill.training.rows.RENDERED", 2**27)
    heard = Silent()
    train(settings(folder, {**NOBODY, "train.epochs": 4, "output.name": "again"}), progress=heard)
    assert not notes(heard)


def both(folder: Path) -> list[str]:
    multiprocessing.set_start_method("fork", force=True)  # as under torchrun: these come from a server of forks
    workers.LONG = workers.SHARE = 0.0
    workers.GAIN = -1.0
    workers.SECONDS = 0.1
    workers.cores_here = lambda: 4
    heard = Silent()
    cache_logits(settings(folder, {**NOBODY, "output.cache": "by-two"}), progress=heard)
    return notes(heard)


@pytest.mark.thorough
def test_each_of_several_processes_tries_for_itself(folder: Path) -> None:
    ended = in_ranks(2, both, folder)
    assert [one.error for one in ended] == ["", ""]
    assert all(len(one.result) == 1 for one in ended)
    assert contents(folder / "by-two", ["args.toml"]) == contents(folder / "cache", ["args.toml"])
