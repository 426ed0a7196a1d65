"""Passes whose training records hold drawn ids: what they keep, how they go on, and what a student learns from them."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import language_helpers as language
import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import contents, killed_at, make_folder, refused, save_member, settings

from ensemble_distill import load_settings
from ensemble_distill.cache import writer
from ensemble_distill.cache.manifest import Manifest
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import RecordKey, SampleKey
from ensemble_distill.cache.records import mapped
from ensemble_distill.cache.sampled_records import SampledRecords
from ensemble_distill.caching import drawing, storing
from ensemble_distill.caching.kept import Kept
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.doctor import doctor
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.train import train

SAMPLED: dict[str, Any] = {"cache.records": "sampled", "cache.samples": 4}
TWO: dict[str, Any] = {"cache.records": "sampled", "cache.samples": 2}  # of three classes

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


class Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note


def of(folder: Path, sets: dict[str, Any]) -> Settings:
    return load_settings(folder / "edistill.toml", {"cache.batch-size": 8, **sets})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four members of a language, cached whole and of drawn ids."""
    folder = tmp_path_factory.mktemp("sampled") / "words"
    language.make_language(folder)
    cache_logits(of(folder, {"output.cache": "dense"}))
    cache_logits(of(folder, SAMPLED))
    return folder


# --- what is kept -----------------------------------------------------------------------------------------------


def test_members_share_ids_and_keep_what_they_say_of_them(made: Path) -> None:
    found = Cache(made / "cache").open("train")
    assert isinstance(found, SampledRecords)
    rows = range(len(found))
    read, whole = found.read(rows), Cache(made / "dense").open("train").read(rows)
    ids, log_p = read[..., :4].astype(int), read[..., 8:12]
    assert (ids == ids[:, :1]).all()
    p = drawing.probabilities(whole)
    assert_allclose(np.exp(log_p), np.take_along_axis(p, ids, -1), rtol=3e-3)
    assert_allclose(read[..., 12], p.max(-1), rtol=1e-3)
    assert (ids[:, 0, :, 0] == p.mean(1).argmax(-1)).mean() > 0.99, "float16 rounds ties"
    # over many positions weights sum to 1, and what is summed with them is right
    weight = read[..., 4:8]
    assert weight.sum(-1).mean() == pytest.approx(1, abs=0.03)
    value = np.arange(10.0)
    assert (weight * value[ids]).sum(-1).mean() == pytest.approx((p * value).sum(-1).mean(), rel=0.03)


def test_members_are_held_against_probabilities_at_the_ids(made: Path) -> None:
    cache, key = Cache(made / "cache"), RecordKey("train", "member-1", 0)
    rows = cache.manifest.splits["train"].rows

    def read(key: Any) -> Any:
        return np.asarray(mapped(key.path(made / "cache"), cache.manifest.format_of(key).record, rows))

    kept, said = Kept(cache.manifest, key, read), Cache(made / "dense").open("train").read(range(rows))[:, 1]
    ids = cache.open("train").read(range(rows))[:, 1, :, :4].astype(int)
    now, changed = (np.take_along_axis(drawing.probabilities(z), ids, -1) for z in (said, said[..., ::-1]))
    assert_allclose(np.exp(np.take_along_axis(kept.said, ids, -1)), now, rtol=5e-3)
    assert kept.furthest(said) == pytest.approx(0, abs=2e-3)
    assert kept.furthest(said[..., ::-1].copy()) == pytest.approx(np.abs(changed - now).max(), abs=2e-3)


def test_only_what_is_trained_on_is_drawn(made: Path) -> None:
    cache = Cache(made / "cache")
    assert {key.split for key in cache.manifest.drawn} == {"train"}
    for split in ("validation", "test"):
        assert_allclose(cache.open(split).read([0, 1]), Cache(made / "dense").open(split).read([0, 1]))
    assert cache.verify() == []
    assert json.loads((made / "cache/manifest.json").read_text())["format"] == 3
    assert json.loads((made / "dense/manifest.json").read_text())["format"] == 1


def test_the_seed_of_views_says_what_is_drawn_of_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 40})
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        cache_logits(settings(folder, {**TWO, "views.seed": seed, "output.cache": name}))
    drawn = {
        name: (folder / name / "records/samples/train/ids.v1.npy").read_bytes() for name in ("one", "two", "other")
    }
    assert drawn["one"] == drawn["two"] != drawn["other"]


# --- interrupted, extended, damaged -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_pass_killed_at_any_point_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder, TWO))
    again, found = settings(folder, {**TWO, "output.cache": "again"}), []
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
        both = [contents(folder / name, ["args.toml", ".part"]) for name in ("again", "cache")]
        assert both[0] == both[1], f"after a crash at point {point}"
    assert point > 4 * 12


def test_a_member_that_comes_later_is_asked_about_the_ids_there_are_and_its_weights_are_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder, TWO))
    before = contents(folder / "cache/records")
    save_member(folder, 2)
    told = Told()
    assert cache_logits(settings(folder, TWO), progress=told).added == 2 + 1
    after = contents(folder / "cache/records")
    assert {name: after[name] for name in before} == before
    (line,) = (line for line in told.lines if "member-2 came after the ids of train were drawn" in line)
    of_views = [Cache(folder / "cache").open("train", 2).read(range(40), view)[:, 2] for view in range(2)]
    weights = float(np.mean([of_view[:, 2:4].sum(-1) for of_view in of_views]))
    assert float(line.split("sum to ")[1].split(" ")[0]) == pytest.approx(weights, abs=2e-3)
    cache_logits(settings(folder, {"output.cache": "dense"}))
    read = Cache(folder / "cache").open("train", 2).read(range(40))
    p = drawing.probabilities(Cache(folder / "dense").open("train", 2).read(range(40)))
    ids = read[..., :2].astype(int)
    assert_allclose(np.exp(read[..., 4:6]), np.take_along_axis(p, ids, -1), rtol=5e-3)
    assert not SampledRecords(folder / "cache", Manifest.load(folder / "cache"), "train", 2).of_all
    # alone it has its own largest probability, and with the others nobody knows that of all
    train(settings(folder, {"train.method": "ban", "method.objective": "cwtm", "train.teacher": "member-2"}))
    with refused("cwtm", "drawn from together", 'cache.records = "dense"'):
        train(settings(folder, {"train.method": "ban", "method.objective": "cwtm", "output.name": "all"}))


def test_a_member_that_comes_in_the_middle_of_a_pass_is_asked_about_the_ids_in_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 16)
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    with killed_at(4 * 5, monkeypatch, folder / "cache") as happened:
        cache_logits(settings(folder, TWO))
    assert happened
    assert len(list((folder / "cache/parts/train").glob("*.safetensors"))) == 2, "of three blocks, four batches each"
    save_member(folder, 2)
    cache_logits(settings(folder, TWO))
    cache_logits(settings(folder, {"output.cache": "dense"}))
    found, whole = (Cache(folder / name).open("train", 2) for name in ("cache", "dense"))
    for view in range(2):
        read, p = found.read(range(40), view), drawing.probabilities(whole.read(range(40), view))
        ids = read[..., :2].astype(int)
        assert_allclose(np.exp(read[..., 4:6]), np.take_along_axis(p, ids, -1), rtol=5e-3)


def test_lost_ids_are_drawn_again_with_all_that_was_said_of_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", members=2, rows={"train": 40, "validation": 6})
    cache_logits(settings(folder, TWO))
    before = contents(folder / "cache")
    SampleKey("train", 1).path(folder / "cache").unlink()
    with refused("ids.v1.npy", "edistill cache-logits"):
        Cache(folder / "cache").open("train", 2)
    assert cache_logits(settings(folder, TWO)).added == 3
    RecordKey("train", "member-1", 0).path(folder / "cache").unlink()
    assert cache_logits(settings(folder, TWO)).added == 1
    assert contents(folder / "cache") == before


@pytest.mark.parametrize("change", ["rows", "members", "cache.batch-size", "cache.samples", "cache.records"])
def test_ids_without_any_answers_are_drawn_again_if_something_changed(made: Path, tmp_path: Path, change: str) -> None:
    """As a kill leaves them between two saves of the manifest, if the records are large."""
    folder = shutil.copytree(made, tmp_path / "words", ignore=shutil.ignore_patterns("cache", "dense"))
    cache, sets = folder / "cache", dict(SAMPLED)
    cache_logits(of(folder, sets))
    manifest = Manifest.load(cache)
    for key in manifest.answers:
        key.path(cache).unlink()
    ids = SampleKey("train", 0)
    replace(manifest, records={ids: manifest.records[ids]}).save(cache)
    if change == "rows":
        (folder / "train.txt").write_text(language.words(language.TOKENS["train"], 9))
    elif change == "members":
        (folder / "teachers/member-0.safetensors").unlink()
    else:
        sets |= {change: {"cache.batch-size": 4, "cache.samples": 3, "cache.records": "dense"}[change]}
    cache_logits(of(folder, sets))
    cache_logits(of(folder, {**sets, "output.cache": "whole"}))
    assert contents(cache, ["args.toml"]) == contents(folder / "whole", ["args.toml"])


# --- how it is chosen -------------------------------------------------------------------------------------------


def test_large_records_are_drawn_unless_somebody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "TOO_LARGE", 1000)
    language.make_language(tmp_path / "words")
    told = Told()
    cache_logits(of(tmp_path / "words", {"cache.samples": 4}), progress=told)
    assert Manifest.load(tmp_path / "words/cache").is_sampled("train")
    assert any("4 drawn tokens of 10" in line and "cache.records" in line for line in told.lines)
    with refused("cache.records = 'sampled'", "'dense'", "--overwrite"):
        cache_logits(of(tmp_path / "words", {"cache.samples": 4, "cache.records": "dense"}))
    with refused("cache.samples = 4", "say 5"):
        cache_logits(of(tmp_path / "words", {"cache.samples": 5}))
    cache_logits(of(tmp_path / "words", {"cache.records": "dense", "output.cache": "whole"}))
    assert not Manifest.load(tmp_path / "words/whole").is_sampled("train")
    # what is there stays, however large it is
    cache_logits(of(tmp_path / "words", {"output.cache": "whole"}))
    with refused("cache.records = 'dense'", "'sampled'"):
        cache_logits(of(tmp_path / "words", {"output.cache": "whole", "cache.records": "sampled"}))


def test_where_there_is_nothing_to_draw_from_it_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny", rows={"train": 8})
    with refused("cache.samples is 3", "3 classes", "cache.records"):
        cache_logits(settings(folder, {"cache.records": "sampled", "cache.samples": 3}))
    assert not (folder / "cache/manifest.json").exists()
    with refused("cache.records", "multi-label"):
        load_settings(folder / "edistill.toml", {"cache.records": "sampled", "task": "multi-label"})


def test_a_disk_without_room_for_what_stays_whole_says_so(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5000})())
    with refused("test alone", "5.0 kB left", "rows of data.test"):
        cache_logits(of(made, {**SAMPLED, "output.cache": "none"}))


# --- what is learned --------------------------------------------------------------------------------------------


LEARNED: dict[str, dict[str, Any]] = {
    "kd": {"train.method": "kd"},
    "hydra": {"train.method": "hydra", "method.label-weight": 0.5},
    "ban-l": {"train.method": "ban", "method.objective": "ban+l", "train.teacher": "member-1"},
    "cwtm": {"train.method": "ban", "method.objective": "cwtm"},
    "supervised": {"train.method": "supervised"},
}


@pytest.mark.parametrize("sets", [SAMPLED, {}], ids=["sampled", "dense"])
def test_the_doctor_tells_the_bytes_of_the_records_that_a_pass_will_write(
    tmp_path: Path, sets: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "words"
    language.make_language(folder)
    report = doctor(lambda: of(folder, sets))
    (told,) = [step["bytes"] for step in report.forecast if step["command"] == "cache-logits"]
    (check,) = [one["told"] for one in report.checks if one["what"] == "cache.records"]
    assert ("4 drawn of" in check) == bool(sets)
    monkeypatch.chdir(folder)
    cache_logits(of(folder, sets))
    files = list((folder / "cache/records").rglob("*.npy"))
    assert told == sum(np.load(path).nbytes for path in files)


@pytest.mark.parametrize("name", LEARNED)
def test_every_method_that_can_learns_nearly_what_it_learns_from_all_classes(made: Path, name: str) -> None:
    losses = []
    for cache in ("cache", "dense"):
        given = {"train.epochs": 10, "train.lr": 0.02, "output.cache": cache, "output.name": f"{name}-{cache}"}
        train(of(made, {**SAMPLED, **given, **LEARNED[name]}))
        header, *lines = (line.split(",") for line in (made / f"runs/{name}-{cache}/summary.csv").read_text().split())
        told = [float(dict(zip(header, line, strict=True))["validation_loss"]) for line in lines]
        losses.append(told[-1])
    # a hundred positions, each with one draw for good; a draw that no weights go with would cost a nat
    assert losses[0] == pytest.approx(losses[1], abs=0.2)
    if name in ("cwtm", "supervised"):
        assert losses[0] == pytest.approx(losses[1], rel=1e-2), "neither needs more than is there"


REFUSED: dict[str, dict[str, Any]] = {
    "method.temperature is 2": {"train.method": "kd", "method.temperature": 2.0},
    "method.loss is 'deviation'": {"train.method": "hydra", "method.loss": "deviation"},
    "method.row-weight is 1": {"train.method": "hydra", "method.row-weight": 1.0},
    "'dkpp'": {"train.method": "ban", "method.objective": "dkpp"},
    "teachers.average is 'logits'": {"train.method": "kd", "teachers.average": "logits"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_needs_all_classes_is_refused_before_anything_is_written(made: Path, said: str) -> None:
    with refused(said, "4 drawn tokens of 10", 'cache.records = "dense"', "--overwrite"):
        train(of(made, {**SAMPLED, **REFUSED[said], "output.name": "refused"}))
    assert not [path for path in (made / "runs/refused").rglob("*") if path.is_file()]


def test_pictures_are_learned_from_drawn_classes_and_evaluated_on_all(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    cache_logits(settings(folder, TWO))
    with refused("learns from the members' whole distributions", "2 drawn classes of 3"):
        train(settings(folder, {"train.method": "proxy-endd"}))
    with refused("method.closed-form is on", "least squares"):
        train(settings(folder, {"train.method": "kd", "method.closed-form": True}))
    told = Told()
    train(settings(folder, {"train.method": "hydra"}), progress=told)
    assert any("no heads are solved for" in line for line in told.lines)
    found = evaluate(settings(folder), "hydra-s0")
    assert found.fidelity["mean_kl"] is not None
    # on rows that are drawn the members are asked, and a few of their classes tell nothing
    cache_logits(settings(folder, {"views.transform": "none", **TWO, "output.cache": "plain"}))
    plain = evaluate(settings(folder, {"output.cache": "plain"}), "hydra-s0", split="train")
    assert plain.models["ensemble"]["nll"] is not None
