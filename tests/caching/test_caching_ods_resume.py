"""Passes that push inputs, killed or extended at any point, go on to the same bytes."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from ods_helpers import ODS, TO, affine_of, facts, make_cache, member, plan_of, run, small_blocks, stored
from tiny import contents, killed_at, linear, rows_asked, save_member, settings

from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import InputKey
from ensemble_distill.facts import Member
from ensemble_distill.settings import Settings
from ensemble_distill.teachers.teacher import Teacher
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_cache(tmp_path)


@pytest.fixture
def again(folder: Path) -> Settings:
    return settings(folder, {**ODS, "output.cache": "again"})


def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, bytes]] = []
    for point in itertools.count():
        shutil.rmtree(folder / "again", ignore_errors=True)
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        if not happened:
            break
        if contents(folder / "again") in found:
            continue
        found.append(contents(folder / "again"))
        cache_logits(again)
        assert facts(folder / "again") == facts(folder / "cache"), f"after a crash at point {point}"
    # the manifest; samples, who is asked, blocks, inputs, manifest; blocks, records, manifest; validation; the settings
    assert point == 4 * (1 + (1 + 1 + 3 + 2 + 1) + (3 + 4 + 1) + (1 + 1 + 2 + 1) + 1)


def test_crashes_in_a_row_go_on_to_the_same_bytes(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crashes in itertools.count():
        with killed_at(2 * 4 + 2 * crashes, monkeypatch, folder / "again") as happened:
            cache_logits(again)
        if not happened:
            break
    assert crashes >= 8
    assert facts(folder / "again") == facts(folder / "cache")


def test_a_new_member_only_labels_what_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {name: content for name, content in facts(folder / "cache").items() if name.endswith(".npy")}
    save_member(folder, 7)
    asked = rows_asked(monkeypatch)
    cache_logits(settings(folder, ODS))
    assert asked == {"member-7": 2 * 40 + 6}
    assert facts(folder / "cache").items() >= old.items()
    inputs, records = stored(folder / "cache", 2), Cache(folder / "cache").open("train", 2)
    a, b = affine_of(7)
    for row in (0, 17, 39):
        z = a @ (2 * inputs.read(row, 1).ravel().astype(np.float64) - 1) + b
        assert_allclose(records.read([row], 1)[0, 2], z, atol=2e-2)  # float16
    cache_logits(settings(folder, {**ODS, "views.count": 3}))
    pushed = Manifest.load(folder / "cache").pushed
    asked_of = [len(pushed[InputKey("train", view)].members) for view in range(3)]
    assert asked_of == [2, 2, 3], "a new view asks all there are"
    assert facts(folder / "cache").items() >= old.items()
    train(settings(folder, {**ODS, "views.count": 3, "train.epochs": 1}))


def test_an_extension_killed_at_any_point_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_member(folder, 7)
    extended = settings(folder, {**ODS, "views.count": 3, "output.cache": "again"})
    whole: dict[str, bytes] = {}
    for point in itertools.chain([10_000], itertools.count(0, 5)):
        shutil.rmtree(folder / "again", ignore_errors=True)
        shutil.copytree(folder / "cache", folder / "again")
        with killed_at(point, monkeypatch, folder / "again") as happened:
            cache_logits(extended)
        if not whole:
            whole = facts(folder / "again")
            continue
        cache_logits(extended)
        assert facts(folder / "again") == whole, f"after a crash at point {point}"
        if not happened:
            break


@pytest.mark.parametrize("point", [4 * 4, 4 * 7, 4 * 11], ids=["inputs", "no outputs", "some outputs"])
def test_a_member_that_comes_in_the_middle_of_a_pass_is_not_asked(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    with killed_at(point, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    save_member(folder, 7)
    cache_logits(again)
    name = "records/inputs/train/x.v0.npy"
    assert (folder / "again" / name).read_bytes() == (folder / "cache" / name).read_bytes()
    cache_logits(settings(folder, ODS))
    assert facts(folder / "again") == facts(folder / "cache")


def test_a_pass_goes_on_rendering_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the members are in the order of their names, and the newcomer's crop is another."""
    plan = plan_of("ods", 40)
    cropped = Member("a", "a", preprocessing=replace(TO, crop_pct=0.7, mean=(0.1,)))
    newcomer = Teacher(cropped, lambda: linear(1))
    run(tmp_path / "whole", {"train": plan}, [member("b")])
    with killed_at(4 * 4 + 1, monkeypatch, tmp_path) as happened:
        run(tmp_path / "cache", {"train": plan}, [member("b")])
    assert happened
    assert any((tmp_path / "cache/parts/inputs/train").iterdir())
    for cache in ("whole", "cache"):
        run(tmp_path / cache, {"train": plan}, [newcomer, member("b")])
    for view in range(2):
        name = f"records/inputs/train/x.v{view}.npy"
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    run(tmp_path / "other", {"train": plan}, [newcomer, member("b")])
    assert (tmp_path / "other" / name).read_bytes() != (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("point", "change"),
    [  # inputs, no outputs, some outputs
        (4 * 4, {"cache.batch-size": 2}),
        (4 * 8, {"views.seed": 3}),
        (4 * 11, {"views.transform": "confods"}),
        (4 * 8, {"views.transform": "mixup"}),
        (4 * 11, {}),
    ],
    ids=str,
)
def test_before_any_output_is_complete_anything_may_change(
    folder: Path, again: Settings, monkeypatch: pytest.MonkeyPatch, point: int, change: dict[str, Any]
) -> None:
    """The last one takes a member away that had been asked."""
    with killed_at(point, monkeypatch, folder / "again") as happened:
        cache_logits(again)
    assert happened
    if not change:
        (folder / "teachers/member-0.safetensors").unlink()
    cache_logits(settings(folder, {**ODS, **change, "output.cache": "again"}))
    cache_logits(settings(folder, {**ODS, **change, "output.cache": "whole"}))
    assert facts(folder / "again") == facts(folder / "whole")
