"""A killed chain goes on, from the generation and the step where it was, to the bytes of an uninterrupted one;
and what is told of how long all of it takes."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import StopsAt, contents, killed_at, make_folder, refused, settings

from ensemble_distill.chains import forecast
from ensemble_distill.chains.generations import ChainReport, train_chain
from ensemble_distill.runtime import files
from ensemble_distill.runtime.words import duration
from ensemble_distill.settings import Settings
from ensemble_distill.training.loop import Training
from ensemble_distill.workflows.cache_logits import cache_logits

WRITE = 4  # crash points of one write
COUNT = 3
# a checkpoint after each step; the tiny body has dropout and BatchNorm
HARD = {
    "train.method": "ban",
    "train.generations": COUNT,
    "train.epochs": 2,
    "train.batch-size": 20,
    "train.model-ema": True,
    "train.model-ema-decay": 0.7,
    "train.checkpoint-minutes": 1e-9,
    "method.objective": "dkpp",  # draws random numbers in each step
}
OTHER = {"train.lr": 0.05}  # another chain's
# a spread over the whole chain and all steps of a write, see `test_the_points_are_all_over_the_chain`
POINTS = range(3, 224, 29)


pytestmark = [pytest.mark.usefixtures("no_waiting_for_disks"), pytest.mark.thorough]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, and the chains runs/whole and runs/other. Each test names a chain of its own."""
    folder = make_folder(tmp_path_factory.mktemp("chains") / "tiny", rows={"train": 40, "validation": 12})
    cache_logits(settings(folder))
    train_chain(hard(folder, "whole"))
    train_chain(hard(folder, "other", OTHER))
    return folder


_names = (f"chain-{number}" for number in itertools.count())


@pytest.fixture
def name(folder: Path) -> str:
    """Of a new chain."""
    return next(_names)


@pytest.fixture
def old(folder: Path, name: str) -> Path:
    """A finished chain of other settings than `hard`'s."""
    return Path(shutil.copytree(folder / "runs/other", folder / "runs" / name))


def hard(folder: Path, name: str, more: Mapping[str, Any] | None = None) -> Settings:
    return settings(folder, {**HARD, "output.name": name, **(more or {})})


def weights(chain: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(chain).items() if name.endswith("student.safetensors")}


def resumed(report: ChainReport) -> list[int]:
    return [generation.resumed_at for generation in report.generations]


# --- interrupted ------------------------------------------------------------------------------------------------


def test_the_points_are_all_over_the_chain(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `POINTS` are of every generation, and of the caches in between."""
    chain, seen = folder / "runs" / name, list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(files, "crash_point", lambda step, path: seen.append(path.relative_to(chain).as_posix()))
        train_chain(hard(folder, name))
    assert len(POINTS) == 8
    assert POINTS.stop == len(seen)
    assert {point % WRITE for point in POINTS} == set(range(WRITE))
    of = {seen[point].rpartition("/")[0].partition("/records")[0] for point in POINTS}
    assert of == {"", *(f"generation-{g}" for g in (1, 2, 3)), *(f"caches/generation-{g}" for g in (1, 2))}
    assert weights(folder / "runs" / name) == weights(folder / "runs/whole")


@pytest.mark.parametrize("point", POINTS)
def test_a_chain_killed_at_a_write_goes_on_to_the_same_bytes(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    chain = folder / "runs" / name
    with killed_at(point, monkeypatch, chain) as happened:
        train_chain(hard(folder, name))
    assert happened
    kept = weights(chain)
    train_chain(hard(folder, name))
    assert weights(chain) == weights(folder / "runs/whole")
    assert kept.items() <= weights(chain).items()
    assert contents(chain).keys() == contents(folder / "runs/whole").keys()


@pytest.mark.parametrize(("step", "at"), [(1, [0, 0, 0]), (6, [0, 1, 0]), (8, [0, 3, 0]), (12, [0, 0, 3])])
def test_a_chain_goes_on_at_its_generation_and_step(folder: Path, name: str, step: int, at: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_chain(hard(folder, name), progress=StopsAt(step))
    finished = (step - 1) // 4
    report = train_chain(hard(folder, name))
    assert [one.fresh for one in report.generations] == [g >= finished for g in range(COUNT)]
    assert resumed(report) == at
    assert weights(report.folder) == weights(folder / "runs/whole")


def test_many_interruptions_and_a_growing_number(folder: Path, name: str) -> None:
    for count, steps in ((1, 2), (2, 5), (2, 1), (3, 2), (3, 3)):
        with pytest.raises(KeyboardInterrupt):
            train_chain(hard(folder, name, {"train.generations": count}), progress=StopsAt(steps))
    train_chain(hard(folder, name))
    assert weights(folder / "runs" / name) == weights(folder / "runs/whole")


def test_an_interrupted_chain_is_of_its_settings(folder: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_chain(hard(folder, name), progress=StopsAt(2))
    before = contents(folder / "runs" / name)
    with refused("was made with train.lr = 0.01, but now it is 0.05"):
        train_chain(hard(folder, name, OTHER))
    assert contents(folder / "runs" / name) == before


# --- overwritten ------------------------------------------------------------------------------------------------


def test_overwriting_interrupted_before_its_first_checkpoint_leaves_the_old_chain(folder: Path, old: Path) -> None:
    before = contents(old)
    with pytest.raises(KeyboardInterrupt):
        train_chain(hard(folder, old.name), overwrite=True, progress=StopsAt(1))
    assert contents(old) == before
    assert not train_chain(hard(folder, old.name, OTHER)).fresh
    with refused("was made with train.lr = 0.05, but now it is 0.01"):
        train_chain(hard(folder, old.name))


# the chain's settings (0 to 3), those of its first generation, its config, its first checkpoint, ...
@pytest.mark.parametrize("point", [0, 3, 6, 9, 13, 70])
def test_overwriting_killed_at_a_write_goes_on_to_the_new_chain(
    folder: Path, old: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    """Without being told to overwrite again."""
    with killed_at(point, monkeypatch, old) as happened:
        train_chain(hard(folder, old.name), overwrite=True)
    assert happened
    assert not weights(old).items() & weights(folder / "runs/other").items(), "the old generations go together"
    train_chain(hard(folder, old.name))
    assert weights(old) == weights(folder / "runs/whole")
    assert contents(old).keys() == contents(folder / "runs/whole").keys()


def test_overwriting_by_a_shorter_chain(folder: Path, old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_chain(hard(folder, old.name, {"train.generations": 2}), overwrite=True, progress=StopsAt(3))
    train_chain(hard(folder, old.name, {"train.generations": 2}))
    assert weights(old).items() < weights(folder / "runs/whole").items()
    assert len(weights(old)) == 2
    assert {path.name for path in (old / "caches").iterdir()} == {"generation-1"}


# --- what is told -----------------------------------------------------------------------------------------------


def plain(folder: Path, name: str, generations: int) -> Settings:
    return settings(folder, {"train.method": "ban", "train.generations": generations, "output.name": name})


class Heard:
    """Keeps all that is reported: ("note", text), ("warn", text), ("start", task), ("step", "")."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def start(self, task: str, total: int, unit: str, done: int = 0) -> None:
        self.events.append(("start", task))

    def advance(self, count: int = 1, facts: Mapping[str, float] | None = None) -> None:
        self.events.append(("step", ""))

    def finish(self) -> None: ...

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def warn(self, text: str) -> None:
        self.events.append(("warn", text))

    def of(self, kind: str) -> list[str]:
        return [text for what, text in self.events if what == kind]


def test_the_time_is_told_before_the_first_step_and_after_each_generation(folder: Path, name: str) -> None:
    heard = Heard()
    train_chain(plain(folder, name, 3), progress=heard)
    first, *after = heard.of("note")
    assert re.fullmatch(r"3 generations of 3 epochs: about \d+ s and \d+\.\d kB\.", first)
    assert heard.events[0] == ("note", first)
    assert [re.sub(r"\d+ s", "… s", note) for note in after] == [
        "generation-1 took … s; about … s left.",
        "generation-2 took … s; about … s left.",
    ]
    assert all("still falling" in told for told in heard.of("warn")), "which so short a training may be"
    trainings = [task for task in heard.of("start") if task.endswith("training")]
    assert trainings == [f"generation {g} of 3: training" for g in (1, 2, 3)]
    at = heard.events.index
    assert at(("note", after[0])) < at(("start", trainings[1])) < at(("note", after[1])) < at(("start", trainings[2]))


def test_what_is_left_is_told_of_a_growing_chain(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_bytes", lambda _: 3)
    train_chain(plain(folder, name, 1))
    heard = Heard()
    train_chain(plain(folder, name, 3), progress=heard)
    first, second = heard.of("note")
    assert first.startswith("2 generations of 3 epochs: about ")
    assert second.startswith("generation-2 took ")
    (warning,) = heard.of("warn")
    assert "has 0.0 kB left" in warning
    assert str(folder / "runs" / name) in warning
    silent = Heard()
    train_chain(plain(folder, name, 3), progress=silent)
    assert silent.events == []


@pytest.mark.parametrize("keeps", [True, False])
def test_the_forecast_adds_up(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, keeps: bool) -> None:
    """Of 4 seconds for an update of 8 rows, 2 for a pass, 1 to render; students of 2 MB with checkpoints of 6."""
    monkeypatch.setattr(Training, "seconds_a_batch", lambda training: (4.0, 2.0, 1.0))
    monkeypatch.setattr(Training, "sizes", lambda training: (2_000_000, 6_000_000))
    monkeypatch.setattr(Training, "keeps_rows", keeps)
    heard = Heard()
    train_chain(plain(folder, name, 3), progress=heard)
    rendered = 2 if keeps else 3  # kept, a row is rendered once for each of its two views, not at each of three epochs
    a_training = (4 * 3 + rendered) * 40 / 8 + 3 * 3 * 12 / 8
    a_cache = 3 * (2 * 40 + 12 + 10) / 8  # the last generation needs none
    assert heard.of("note")[0].endswith(f"about {duration(3 * a_training + 2 * a_cache)} and 24.0 MB.")


def test_durations_as_people_say_them() -> None:
    for seconds, text in [(0.2, "0 s"), (45, "45 s"), (720, "12 min"), (12_000, "3 h 20 min"), (7_200, "2 h 00 min")]:
        assert duration(seconds) == text
