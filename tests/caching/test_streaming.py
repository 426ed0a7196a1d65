"""Members whose weights do not fit into memory together: read in groups, asked as ever, and the cache is the same."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ods_helpers import ODS
from ranks_helpers import in_ranks
from safetensors.torch import save_file
from tiny import (
    CLASSES,
    SIDE,
    Killed,
    contents,
    killed_at,
    make_folder,
    member_state,
    refused,
    rows_asked,
    save_member,
    settings,
)

from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.parts import Block
from ensemble_distill.caching import forecast
from ensemble_distill.caching.grouping import NOTED
from ensemble_distill.runtime import memory, ranks
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.teachers import streamed
from ensemble_distill.teachers.streamed import Room, Streamed
from ensemble_distill.teachers.together import FEWEST
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor

BYTES = 4 * (SIDE * SIDE + 1) * CLASSES  # of a member
SAMPLED = {"cache.records": "sampled", "cache.samples": 2}
ROWS = {"train": 40, "validation": 6}

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)  # of the 40 training rows: 16, 16 and 8


def little(members: float) -> Callable[[torch.device], int]:
    """As much memory as lets so many members be there at once."""
    return lambda device: int((members + 1) * BYTES / streamed.SHARE) + 1


@pytest.fixture
def for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", little(2))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many members were there each time that one came."""
    found: list[int] = []
    enter = Room.enter

    def counted(self: Room, member: Streamed) -> None:
        enter(self, member)
        found.append(len(self._there))

    monkeypatch.setattr(Room, "enter", counted)
    return found


def facts(cache: Path) -> dict[str, bytes]:
    return contents(cache, ["args.toml", ".part"])


def cached(folder: Path, name: str, **overrides: Any) -> Silent:
    progress = Silent()
    cache_logits(settings(folder, {**overrides, "output.cache": name}), progress=progress)
    return progress


def groups_told(progress: Silent) -> list[str]:
    return [note for note in progress.notes if "groups" in note]


# --- the same bytes ---------------------------------------------------------------------------------------------


def test_members_are_there_two_at_a_time_and_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[int]
) -> None:
    folder = make_folder(tmp_path / "tiny", members=5)
    assert groups_told(cached(folder, "held")) == []
    assert max(there) == 5
    there.clear()
    monkeypatch.setattr(memory, "available", little(2))
    (note,) = groups_told(cached(folder, "streamed"))
    assert note == (
        "5 members are asked in 3 groups, one after the other: their weights, and what loading one takes, need "
        "2.7 kB, and only 1.3 kB of memory is available."
    )
    assert max(there) == 2
    monkeypatch.setattr(memory, "available", little(0))
    alone = [note for note in cached(folder, "one-by-one").warnings if "may not fit" in note]
    assert [note.split()[0] for note in alone] == [f"member-{index}" for index in range(5)]
    monkeypatch.setattr(memory, "available", little(2))
    assert facts(folder / "streamed") == facts(folder / "held")
    assert cached(folder, "streamed").notes == [], "up to date"


def test_less_memory_than_one_member_has_is_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[int]
) -> None:
    folder = make_folder(tmp_path / "tiny", members=3, rows=ROWS)
    cached(folder, "held")
    there.clear()
    monkeypatch.setattr(memory, "available", lambda device: 0)
    (note,) = groups_told(cached(folder, "streamed"))
    assert "in 3 groups" in note
    assert max(there) == 1
    assert facts(folder / "streamed") == facts(folder / "held")


@pytest.mark.parametrize("views", [SAMPLED, ODS, {**SAMPLED, **ODS}, {"views.count": 5}])
def test_drawn_ids_gradient_views_and_many_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[int], views: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows=ROWS)
    cached(folder, "held", **views)
    there.clear()
    monkeypatch.setattr(memory, "available", little(2))
    (note,) = groups_told(cached(folder, "streamed", **views))
    assert ("Each batch of train needs all of them, and reads them again." in note) == ("views.count" not in views)
    assert max(there) == 2
    assert facts(folder / "streamed") == facts(folder / "held")


@pytest.mark.parametrize("views", [{}, SAMPLED], ids=["whole", "drawn"])
def test_those_of_a_batch_stay_together_and_others_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: dict[str, Any], there: list[int]
) -> None:
    folder = make_folder(tmp_path / "tiny", members=FEWEST, rows=ROWS)
    cached(folder, "first", **views)
    save_file(member_state(20), folder / "teachers" / "member-3-later.safetensors")  # which is asked alone
    more = {**views, "views.count": 3}
    for name, most in (("held", 100), ("streamed", 1)):
        shutil.copytree(folder / "first", folder / name)
        monkeypatch.setattr(memory, "available", little(most))
        there.clear()
        told = groups_told(cached(folder, name, **more))
        assert max(there) == (FEWEST + 1 if most == 100 else 1)
    assert "9 members are asked in 2 groups" in told[0]
    assert Manifest.load(folder / "held").caching[NOTED] == [[f"member-{index}" for index in range(FEWEST)]]
    assert facts(folder / "streamed") == facts(folder / "held")


def test_members_of_every_runtime_that_return_more_than_an_answer_about_held_out_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[int]
) -> None:
    folder = make_folder(tmp_path / "tiny", members=0, rows=ROWS)
    (folder / "model.py").write_text(NAMED)
    for index in range(2):
        save_member(folder, index)
    onnx.save(linear_of(2), folder / "teachers" / "member-2.onnx")
    onnx.save(linear_of(3), folder / "teachers" / "member-3.onnx")
    said = {split: np.random.default_rng(1).normal(size=(rows, CLASSES)) for split, rows in ROWS.items()}
    np.savez(folder / "teachers" / "member-4.npz", **said)
    np.save(folder / "folds.npy", np.arange(ROWS["train"]) % 5)
    sets = {"teachers.folds": "folds.npy", "views.transform": "none", "views.count": 1}
    held = cached(folder, "held", **sets)
    there.clear()
    monkeypatch.setattr(memory, "available", lambda device: 0)
    told = cached(folder, "streamed", **sets)
    assert groups_told(told)
    assert max(there) == 2, "with the table of outputs, which weighs nothing"
    assert "held-out" in Manifest.load(folder / "streamed").splits
    picked = [note for note in told.notes if "is taken as its logits" in note]
    assert len(picked) == 2
    assert picked == [note for note in held.notes if "is taken as its logits" in note]
    assert facts(folder / "streamed") == facts(folder / "held")


NAMED = """
from torch import nn


class Named(nn.Sequential):
    def forward(self, x):
        return {"features": x.flatten(1), "logits": super().forward(x.mean(1))}


def make_teacher():
    return Named(nn.Identity(), nn.Flatten(), nn.Linear(36, 3))
"""


def linear_of(seed: int) -> Any:
    """A graph of pixels (N, 1, SIDE, SIDE) to logits."""
    state = member_state(seed)
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    weights = [onnx.numpy_helper.from_array(state[f"2.{name}"].numpy(), name[0]) for name in ("weight", "bias")]
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 1, SIDE, SIDE]), ("logits", ["N", CLASSES]))
    ]
    graph = onnx.helper.make_graph(nodes, "linear", ports[:1], ports[1:], weights)
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 17)])


# --- kills and failures -----------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(("first", "then"), [(2, 2), (100, 2), (2, 100)])
def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, then: int
) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows=ROWS)
    cached(folder, "held")
    for point in itertools.count(0, 3):
        shutil.rmtree(folder / "again", ignore_errors=True)
        monkeypatch.setattr(memory, "available", little(first))
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cached(folder, "again")
        if not happened:
            break
        monkeypatch.setattr(memory, "available", little(then))
        cached(folder, "again")
        assert facts(folder / "again") == facts(folder / "held"), f"after a crash at point {point}"
    assert point > 60


def test_what_a_pass_that_held_all_has_done_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows=ROWS)
    put = writer.Writer.put

    def killed(self: writer.Writer, block: Block, records: Any) -> None:
        if block.start == 32:
            raise Killed
        put(self, block, records)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "put", killed)
        with pytest.raises(Killed):
            cached(folder, "cache")
    asked = rows_asked(monkeypatch)
    monkeypatch.setattr(memory, "available", little(2))
    assert groups_told(cached(folder, "cache"))
    assert asked == {f"member-{index}": 2 * 8 + 6 for index in range(4)}
    assert not (folder / "cache" / "parts" / "train").exists()
    cached(folder, "again")
    assert facts(folder / "cache") == facts(folder / "again")


def changing(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Something changes when the first group has its records of train."""
    join = writer.Writer.join

    def changed(self: writer.Writer, keys: Any, *rest: Any) -> None:
        join(self, keys, *rest)
        if keys and keys[0].split == "train":
            change()

    monkeypatch.setattr(writer.Writer, "join", changed)


def test_a_file_that_changes_before_its_group_comes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_two: None
) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows=ROWS)
    with monkeypatch.context() as patch:
        changing(folder, patch, lambda: save_member(folder, 3, seed=9))
        with refused("member-3.safetensors has changed since it was listed"):
            cached(folder, "cache")
    kept = {key.member for key in Manifest.load(folder / "cache").records}
    assert kept == {"member-0", "member-1"}, "what the first group said stays"
    asked = rows_asked(monkeypatch)
    save_member(folder, 3)
    cached(folder, "cache")
    assert asked == {"member-0": 6, "member-1": 6, "member-2": 86, "member-3": 86}
    cached(folder, "held")
    assert facts(folder / "cache") == facts(folder / "held")


def test_a_member_that_fails_in_the_second_group_loses_nothing_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_two: None
) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows=ROWS)
    bad = member_state(3)
    (folder / "model.py").write_text((folder / "model.py").read_text() + FAILS)
    bad["2.bias"][0] = 1000.0
    save_file(bad, folder / "teachers" / "member-3.safetensors")
    sets = {"teachers.model": "model.py:make_failing", "cache.dtype": "float32"}
    with refused("Member member-3 fails at row 20 of train"):
        cached(folder, "cache", **sets)
    assert {key.member for key in Manifest.load(folder / "cache").records} == {"member-0", "member-1"}
    save_member(folder, 3)
    asked = rows_asked(monkeypatch)
    cached(folder, "cache", **sets)
    assert asked == {"member-0": 6, "member-1": 6, "member-2": 86, "member-3": 86}
    cached(folder, "held", **sets)
    assert facts(folder / "cache") == facts(folder / "held")


FAILS = """

class Failing(nn.Sequential):
    asked = 0

    def forward(self, x):
        if self[2].bias[0] > 999:
            self.asked += 1
            if len(x) == 4 and self.asked > 10:
                raise RuntimeError("the disk of something is full")
        return super().forward(x)


def make_failing():
    return Failing(Gray(), nn.Flatten(), nn.Linear(36, 3))
"""


# --- several processes ------------------------------------------------------------------------------------------


def cache_streamed(folder: Path) -> list[str]:
    writer.BLOCK_ROWS = 16
    own = 2 if ranks.current().index else 3  # the least counts, and is divided
    memory.available = lambda device: 2 * little(own)(device)  # type: ignore[assignment]
    return [note for name, sets in KINDS.items() for note in groups_told(cached(folder, f"by ranks/{name}", **sets))]


KINDS: dict[str, dict[str, Any]] = {"dense": {}, "sampled": SAMPLED, "moved": ODS}


@pytest.mark.thorough
def test_several_processes_make_the_same_bytes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", members=5, rows=ROWS)
    ended = in_ranks(2, cache_streamed, folder)
    assert [one.error for one in ended] == ["", ""]
    assert [len(one.result) for one in ended] == [3, 0], "the first one speaks"
    assert all("in 3 groups" in note for note in ended[0].result)
    for name, sets in KINDS.items():
        cached(folder, f"held/{name}", **sets)
        assert facts(folder / "by ranks" / name) == facts(folder / "held" / name), name


# --- what is told -----------------------------------------------------------------------------------------------


def test_doctor_says_that_members_are_asked_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "tiny", members=5, rows=ROWS)
    assert not [check for check in doctor(lambda: settings(folder)).checks if check["what"] == "memory"]
    monkeypatch.setattr(memory, "available", little(2))
    report = doctor(lambda: settings(folder))
    (told,) = [check for check in report.checks if check["what"] == "memory"]
    assert "5 members are asked in 3 groups" in told["told"]
    assert not told["problem"]
    assert report.forecast[0]["command"] == "cache-logits"


def test_a_pass_in_groups_takes_longer_by_rendering_and_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "tiny", members=4, rows={"train": 300, "validation": 12})
    monkeypatch.setattr(forecast, "seconds_a_row", lambda *_: (0.5, 0.75))
    monkeypatch.setattr(memory, "available", little(2))
    monkeypatch.setattr(Room, "seconds", property(lambda self: 60.0, lambda self, value: None), raising=False)
    (note,) = [note for note in cached(folder, "cache").notes if "to write" in note]
    # 612 rows, each rendered for two groups of two members: 1,530 s; and 60 s for each split
    assert "612 rows in their views: about 28 min, " in note
