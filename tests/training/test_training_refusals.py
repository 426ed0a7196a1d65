"""What training refuses: caches that are not whole, runs of something else, and settings of no use.

Changed data, views and members are in test_caching_refusals.py, a changed decoder in test_replay.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import contents, killed_at, refused, save_data, save_member, settings
from training_helpers import RUN, refuses

from ensemble_distill.runs.args import differing
from ensemble_distill.settings import load_settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.train import train

# --- the cache --------------------------------------------------------------------------------------------------


def test_without_a_cache_nothing_is_trained(finished: Path) -> None:
    refuses(finished, {"output.cache": "elsewhere"}, "elsewhere holds no cache", "Run edistill cache-logits first")


def test_an_unfinished_cache_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(4 * 3, monkeypatch, finished / "half") as happened:
        cache_logits(settings(finished, {"output.cache": "half"}))
    assert happened
    refuses(finished, {"output.cache": "half"}, "half is unfinished: train has no view", "cache-logits to finish it")


def test_a_cache_whose_extension_was_killed_is_refused_until_it_is_finished(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_member(finished, 7)
    with killed_at(4 * 3, monkeypatch, finished / "cache") as happened:
        cache_logits(settings(finished))
    assert happened
    refuses(finished, {}, "cache is unfinished: train has no view of every member yet")
    cache_logits(settings(finished))
    assert train(settings(finished, {"output.name": "new"})).heads == 4


def test_a_member_that_is_not_cached_is_named(finished: Path) -> None:
    save_member(finished, 7)
    refuses(
        finished,
        {},
        "cache holds 3 members, and teachers.path has 4: member-7 is not cached",
        "Run edistill cache-logits to add it, or take it away",
    )


def test_more_views_than_are_cached_are_refused(finished: Path) -> None:
    refuses(finished, {"views.count": 5}, "holds 2 views of train, and 5 are asked for", "Run edistill cache-logits")
    assert train(settings(finished, {"views.count": 1, "output.name": "fewer"})).fresh


def test_a_split_that_is_not_cached_is_refused(finished: Path) -> None:
    save_data(finished, "transfer", 9)
    refuses(finished, {"data.transfer": "data/transfer.npz"}, "does not hold transfer", "Run edistill cache-logits")


def test_validation_data_that_changed_is_refused(finished: Path) -> None:
    save_data(finished, "validation", 13)
    refuses(finished, {}, "validation data", "(12 rows)", "(13 rows)")


Damage = Callable[[Path], None]


def missing(record: Path) -> None:
    record.unlink()


def truncated(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-1])


def bit_flipped(record: Path) -> None:
    content = bytearray(record.read_bytes())
    content[-1] ^= 128
    record.write_bytes(content)


def of_another_member(record: Path) -> None:
    shutil.copyfile(record.with_name("member-0.v1.npy"), record)


@pytest.mark.parametrize("damage", [missing, truncated, bit_flipped, of_another_member])
def test_a_damaged_record_is_refused_and_made_again(finished: Path, damage: Damage) -> None:
    whole = contents(finished / "cache")
    record = finished / "cache/records/train/member-2.v1.npy"
    damage(record)
    refuses(finished, {}, str(record), "is damaged", "Delete that file and run edistill cache-logits")
    record.unlink(missing_ok=True)
    assert cache_logits(settings(finished)).added == 1
    assert contents(finished / "cache") == whole
    train(settings(finished, {"output.name": "new"}))


def test_without_the_teachers_the_cache_is_enough(finished: Path) -> None:
    shutil.rmtree(finished / "teachers")
    assert train(settings(finished, {"output.name": "new"})).heads == 3


# --- another run ------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_their_key(finished: Path) -> None:
    for key, then, now in [
        ("train.lr", 0.01, 0.1),
        ("train.epochs", 3, 4),
        ("train.batch-size", 8, 4),
        ("train.opt", "adamw", "sgd"),
        ("train.model-ema", False, True),
        ("train.clip-grad", None, 1.0),
        ("views.count", 2, 1),
        ("views.seed", 0, 1),
        ("student.heads", [], [7]),
        ("student.kwargs", {}, {"width": 9}),
        ("student.init", None, "member-0"),
        ("teachers.average", "probabilities", "logits"),
        ("teachers.weights", None, [1.0, 2.0, 3.0]),
        ("method.temperature", None, 2.0),
    ]:
        before = contents(finished / RUN)
        told = "(default)" if then is None else repr(then)
        with refused(f"{finished / RUN} was made with {key} = {told}, but now it is {now!r}", "--name", "--overwrite"):
            train(settings(finished, {key: now}))
        assert contents(finished / RUN) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.columns", {"inputs": ["age"]}),
        ("data.all", "others"),
        ("data.split", {"test": 0.5}),
        ("limit", 64),
        ("train.seed", 7),
        ("views.transform", "noise"),
        ("teachers.members", {"wide": {"weight": 2.0}}),
    ],
)
def test_what_decides_on_a_student_differs_between_runs(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "edistill.toml").touch()
    given = {"data.all": "rows", "data.split": {"test": 0.25}, "train.epochs": 2}
    one, other = (load_settings(tmp_path / "edistill.toml", sets) for sets in (given, {**given, key: value}))
    assert any(found == key or found.startswith(f"{key}.") for found, *_ in differing(one, other))


@pytest.mark.parametrize(
    "free",
    [
        {"train.workers": 1},
        {"train.checkpoint-minutes": 1},
        {"train.device": "auto"},
        {"data.test": None},
        {"cache.batch-size": 4},
    ],
    ids=str,
)
def test_settings_that_make_no_other_run_are_free(finished: Path, free: dict[str, Any]) -> None:
    assert not train(settings(finished, free)).fresh


def test_an_unfinished_run_is_refused_alike(finished: Path) -> None:
    (finished / RUN / "student.safetensors").unlink()
    with refused("was made with train.lr = 0.01, but now it is 0.1"):
        train(settings(finished, {"train.lr": 0.1}))
    assert train(settings(finished)).resumed_at == 15


def test_overwriting_makes_the_other_run(finished: Path) -> None:
    before = contents(finished / RUN)
    assert train(settings(finished, {"train.lr": 0.1}), overwrite=True).resumed_at == 0
    assert contents(finished / RUN)["student.safetensors"] != before["student.safetensors"]
    assert not train(settings(finished, {"train.lr": 0.1})).fresh


def test_a_run_belongs_to_its_members(finished: Path) -> None:
    before = contents(finished / RUN)
    save_member(finished, 7)
    cache_logits(settings(finished))
    said = ("was trained from members member-0, member-1, member-2,", "holds member-0, member-1, member-2, member-7")
    with refused(*said, "Choose another --name, or pass --overwrite"):
        train(settings(finished))
    save_member(finished, 0, seed=9)
    cache_logits(settings(finished), overwrite=True)
    with refused("was trained from members", "or others of these names"):
        train(settings(finished))
    assert contents(finished / RUN) == before


def test_a_run_belongs_to_its_data(finished: Path) -> None:
    before = contents(finished / RUN)
    save_data(finished, "train", 41)
    cache_logits(settings(finished), overwrite=True)
    with refused("was trained on train data", "Choose another --name, or pass --overwrite"):
        train(settings(finished))
    assert contents(finished / RUN) == before


def test_a_folder_that_is_no_run_is_left_alone(finished: Path) -> None:
    (finished / "runs/thesis").mkdir()
    (finished / "runs/thesis/chapter-1.tex").write_text("years of work")
    for overwrite in (False, True):
        with refused("thesis exists and is not a run (it holds chapter-1.tex)", "Name another folder"):
            train(settings(finished, {"output.name": "thesis"}), overwrite=overwrite)
    assert contents(finished / "runs/thesis") == {"chapter-1.tex": b"years of work"}
