"""A cache from somebody else: whatever its manifest and its files say, every command leaves other folders alone and
ends in a result or in one message."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ods_helpers import ODS
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny import contents, make_folder, refused, save_member, settings

from ensemble_distill.cache.manifest import NAME, Manifest, _checksum
from ensemble_distill.cache.reader import Cache
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime import jsons
from ensemble_distill.settings import Settings
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workflows.calibrate import calibrate
from ensemble_distill.workflows.evaluate import evaluate
from ensemble_distill.workflows.inspect import inspect
from ensemble_distill.workflows.train import train
from ensemble_distill.workflows.verify import verify

ROWS = {"train": 12, "validation": 20, "test": 6, "ood/noise": 5}
QUICK = {**ODS, "train.epochs": 2}
Step = str | int

pytestmark = pytest.mark.usefixtures("no_waiting_for_disks")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache that stores inputs, too, and a run."""
    folder = make_folder(tmp_path_factory.mktemp("hostile") / "tiny", members=2, rows=ROWS)
    cache_logits(settings(folder, QUICK))
    train(settings(folder, QUICK))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


COMMANDS: dict[str, Callable[[Settings], object]] = {
    "verify": lambda asked: verify(Path(asked.output.cache)),
    "inspect": lambda asked: inspect(Path(asked.output.cache)),
    "evaluate": evaluate,
    "calibrate": calibrate,
    "train": lambda asked: train(asked, overwrite=True),
    "cache-logits": cache_logits,
    "cache-logits --overwrite": lambda asked: cache_logits(asked, overwrite=True),
}


def victim_of(folder: Path) -> Path:
    """A folder of somebody's with the names of all that a cache has, in its root and below."""
    victim = folder.parent / "victim"
    for name in ("", "train", "ood", "noise", "inputs/train", "records", "parts/x", "cache"):
        (victim / name).mkdir(parents=True, exist_ok=True)
        for file in ("member-0.v0.npy", "x.v0.npy", "x.safetensors", "train.safetensors", "manifest.json.part"):
            (victim / name / file).write_text("mine")
    return victim


def run_all(asked: Settings, victim: Path) -> list[str]:
    """Every command that opens a cache, in a row; the messages of those that refuse."""
    said = []
    before = contents(victim)
    for name, command in COMMANDS.items():
        try:
            command(asked)
        except EdistillError as error:
            said.append(str(error))
        assert contents(victim) == before, f"after {name}"
    return said


# --- the manifest -----------------------------------------------------------------------------------------------


def nodes(value: Any, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Every place in a JSON document; of a list's items the first."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else []
    for key, item in items:
        yield from nodes(item, (*path, key))


def places(record: dict[str, Any]) -> list[tuple[Step, ...]]:
    """Those of a manifest; of each table one entry of a kind, and nothing of what only tells how it was made."""
    told = {"train", "train/0", "train/member-0/0", "inputs/train/x/0"}
    tables = ("records", "splits", "pushed", "caching")
    return [path for path in nodes(record) if len(path) == 1 or path[0] not in tables or path[1] in told]


def at(record: Any, path: tuple[Step, ...]) -> Any:
    for step in path:
        record = record[step]
    return record


def put_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write it as whoever made it would: with the right checksum."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    (folder / "cache" / NAME).write_text(json.dumps({**rest, "sha256": _checksum(rest)}))


def manifest_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "cache" / NAME).read_text())
    return record


def changed(record: dict[str, Any], path: tuple[Step, ...], value: Any) -> dict[str, Any]:
    """A copy with another value there."""
    copied: dict[str, Any] = json.loads(json.dumps(record))
    at(copied, path[:-1])[path[-1]] = value
    return copied


def renamed(record: dict[str, Any], path: tuple[Step, ...], name: str) -> dict[str, Any]:
    """A copy with another key there."""
    copied: dict[str, Any] = json.loads(json.dumps(record))
    table = at(copied, path[:-1])
    table[name] = table.pop(path[-1])
    return copied


def with_text(record: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """The manifest with this text at each place where it has any, one at a time."""
    for path in places(record):
        if isinstance(at(record, path), str):
            yield changed(record, path, text)
        if isinstance(path[-1], str) and len(path) > 1:
            yield renamed(record, path, text)


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["../../../victim", pytest.param("{victim}/x/0", marks=pytest.mark.slow)])
def test_no_text_of_the_manifest_reaches_another_folder(made: Path, tmp_path: Path, text: str) -> None:
    victim, loaded = victim_of(tmp_path / "tiny"), 0
    for record in with_text(manifest_of(made), text.format(victim=victim)):
        folder = Path(shutil.copytree(made, tmp_path / "tiny"))
        put_manifest(folder, record)
        with contextlib.suppress(EdistillError):
            Manifest.load(folder / "cache")
            loaded += 1
            run_all(settings(folder, QUICK), victim)  # it stands where it says nothing about paths
        shutil.rmtree(folder)
    assert 5 < loaded < 20, "classes, digests, a model: free texts"


PATHS = ["{victim}", "../../victim", "..", ".", "", "a\\b", "a\nb", "{victim}/cache"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "what"), list(zip(PATHS, itertools.cycle(["train", "ood/noise", "member-0", "x"]), strict=False))
)
def test_a_name_that_is_a_path_is_refused_wherever_it_stands_alike(folder: Path, what: str, name: str) -> None:
    """The strongest form: a manifest that agrees with itself."""
    victim = victim_of(folder)
    name = name.format(victim=victim)
    text = json.dumps(manifest_of(folder))
    quoted = json.dumps(name)[1:-1]
    text = text.replace(f'"{what}', f'"{quoted}').replace(f"/{what}/", f"/{quoted}/")
    put_manifest(folder, json.loads(text))
    said = run_all(settings(folder, QUICK), victim)
    assert len(said) == len(COMMANDS) - 1, "all but the one that makes the cache again"
    for one in said:
        assert NAME in one and "is damaged" in one and "--overwrite" in one, one  # noqa: PT018
    assert run_all(settings(folder, QUICK), victim) == [], "the remedy leads on"


WRONG = (None, True, 0, -1, 10**12, 10**400, 1.5, float("nan"), "", "x", [], {}, [[]], [None], {"": {}}, "\ud800")


@pytest.mark.thorough
def test_a_value_of_any_other_kind_is_one_message(folder: Path) -> None:
    victim, whole = victim_of(folder), manifest_of(folder)
    asked, loaded = settings(folder, QUICK), 0
    for path in places(whole):
        for value in WRONG:
            put_manifest(folder, changed(whole, path, value))
            try:
                Manifest.load(folder / "cache")
            except EdistillError:
                continue
            loaded += 1
            for reads in (COMMANDS["verify"], COMMANDS["inspect"], lambda asked: Cache(folder / "cache").open("train")):
                with contextlib.suppress(EdistillError):
                    reads(asked)
    put_manifest(folder, whole)
    assert loaded, "some are a free text or number"
    assert run_all(asked, victim) == []


NO_MANIFESTS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("")),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "a link in a circle": lambda path: (path.unlink(), path.symlink_to(path)),
    "deep": lambda path: path.write_text("[" * 100_000),
    "deep within": lambda path: path.write_text('{"format": 1, "caching": ' + '{"a":' * 100_000),
    "a long number": lambda path: path.write_text('{"format": ' + "1" * 10_000 + "}"),
    "a large format": lambda path: path.write_text('{"format": ' + "1" * 400 + "}"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", NO_MANIFESTS.values(), ids=NO_MANIFESTS.keys())
def test_no_manifest_is_one_message_whose_remedy_leads_on(folder: Path, damage: Callable[[Path], Any]) -> None:
    asked = settings(folder, QUICK)
    whole = contents(folder / "cache")
    damage(folder / "cache" / NAME)
    for command in (lambda: Cache(folder / "cache"), lambda: cache_logits(asked)):
        with refused(str(folder / "cache"), "--overwrite"):
            command()
    cache_logits(asked, overwrite=True)
    assert contents(folder / "cache") == whole


def test_a_manifest_that_may_not_be_read_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, most: int | None = None) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(jsons, "read_whole", denied)
    with refused(str(folder / "cache" / NAME), "Permission denied"):
        Cache(folder / "cache")


# --- records, parts, kept inputs --------------------------------------------------------------------------------


def npy(descr: object, shape: object) -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


FORMATS = [("max", "<f4"), ("logits", "<f2", (3,))]
RECORDS: dict[str, bytes | None] = {
    "empty": b"",
    "a huge shape": npy(FORMATS, (10**12,)) + bytes(120),
    "a shape beyond any": npy(FORMATS, (10**30,)),
    "a negative shape": npy(FORMATS, (-1,)),
    "objects": npy("|O", (12,)) + bytes(96),
    "another type": npy("<f8", (12,)) + bytes(96),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a deep header": b"\x93NUMPY\x01\x00" + (4000).to_bytes(2, "little") + b"(" * 4000,
    "a header that ends": b"\x93NUMPY\x01\x00\xff\xff{",
    "cut": npy(FORMATS, (12,)) + bytes(119),
    "longer": npy(FORMATS, (12,)) + bytes(121),
    "a folder": None,
}


WAYS = itertools.cycle(itertools.product(["train/member-1", "inputs/train/x"], ["in memory", "mapped"]))


@pytest.mark.parametrize(("what", "way"), list(zip(RECORDS, WAYS, strict=False)))
def test_a_record_of_anything_else_is_one_message_and_can_be_deleted(
    folder: Path, what: str, way: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksum of what stands there is in the manifest, as whoever made it would have written it."""
    content, (name, held) = RECORDS[what], way
    if held == "mapped":
        monkeypatch.setattr("ensemble_distill.cache.records.IN_MEMORY", 0)
        monkeypatch.setattr("ensemble_distill.cache.records.IN_MEMORY", 0)
    asked, whole = settings(folder, QUICK), contents(folder / "cache")
    path = folder / "cache/records" / f"{name}.v0.npy"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    sha256 = hashlib.sha256(content or b"").hexdigest()
    put_manifest(folder, changed(manifest_of(folder), ("records", f"{name}/0"), sha256))
    with refused(str(path), "is damaged", "Delete that file and run edistill cache-logits"):
        train(asked, overwrite=True)
    (problem,) = verify(folder / "cache").problems
    assert str(path) in problem
    shutil.rmtree(path) if content is None else path.unlink()
    cache_logits(asked)
    assert contents(folder / "cache") == whole
    train(asked, overwrite=True)


def test_what_was_kept_of_the_inputs_is_checked(folder: Path) -> None:
    asked, path = settings(folder, QUICK), folder / "cache/replay/train.safetensors"
    shape = (1, 6, 6)
    with safe_open(path, framework="numpy") as file:
        to = file.metadata()["to"]
    for x, said in (
        (np.full(shape, np.inf, np.float32), to),
        (np.zeros((), np.float32), to),
        (np.zeros((0, 6, 6), np.float32), to),
        (np.zeros(shape, np.float64), to),
        (np.zeros(shape, np.float32), "[" * 100_000),
        (np.zeros(shape, np.float32), "3"),
        (np.zeros(shape, np.float32), "null"),
    ):
        save_file({"0/0": x}, path, metadata={"to": said})
        with refused(str(path.parent.parent), "--overwrite"):
            train(asked, overwrite=True)
    for content in (b"", b"\xff" * 100, (10**15).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with refused(str(path), "is damaged", "--overwrite"):
            train(asked, overwrite=True)
    cache_logits(asked, overwrite=True)
    train(asked, overwrite=True)


# --- links ------------------------------------------------------------------------------------------------------

LINKED = ["records", "records/train", "records/inputs", "records/ood", "parts", "parts/train", "replay", "replay/ood"]


CHANGES = ["a member more", "overwrite", "another batch size", "a member failed"]


@pytest.mark.parametrize(
    ("place", "change"),
    [*(("records", change) for change in CHANGES), *zip(LINKED[1:], itertools.cycle(CHANGES), strict=False)],
)
def test_nothing_is_written_or_removed_where_a_link_leads(folder: Path, place: str, change: str) -> None:
    """Somebody's folder of the same names, and a pass that writes into each of a cache's folders or empties it."""
    cache, asked = folder / "cache", settings(folder, QUICK)
    if change == "another batch size":  # before anything is complete anything may change
        put_manifest(folder, manifest_of(folder) | {"records": {}, "pushed": {}})
        asked = settings(folder, {**QUICK, "cache.batch-size": 2})
    elif change == "a member failed":
        record = manifest_of(folder)
        record["records"] = {name: s for name, s in record["records"].items() if name != "test/member-1/0"}
        put_manifest(folder, record)
        save_member(folder, 1, seed=9)
    else:
        save_member(folder, 7)
    victim = folder.parent / "victim"
    (cache / place).mkdir(parents=True, exist_ok=True)
    shutil.move(cache / place, victim)
    (victim / "x.part").write_text("mine")
    (victim / "train").mkdir(exist_ok=True)
    (victim / "train" / "0000000000-0000000012-00000000.safetensors").write_text("mine")
    (cache / place).symlink_to(victim)
    before = contents(victim)
    if change == "overwrite":
        cache_logits(asked, overwrite=True)
    else:
        with contextlib.suppress(EdistillError):
            cache_logits(asked)
    assert contents(victim) == before
    if (cache / place).is_symlink():  # the two remedies; the inputs to compare with are nowhere else
        (cache / place).unlink()
        if place.startswith("replay"):
            shutil.copytree(victim, cache / place)
    cache_logits(asked)
    assert contents(victim) == before
    assert not verify(cache).problems
    assert cache_logits(asked).added == 0


def test_a_lock_that_is_a_link_does_not_empty_what_it_leads_to(folder: Path) -> None:
    (folder / "cache/.lock").unlink()
    (folder / "cache/.lock").symlink_to(folder / "model.py")
    before = contents(folder)
    with refused(".lock is a link to", "Delete it"):
        cache_logits(settings(folder, QUICK), overwrite=True)
    assert contents(folder) == before
    (folder / "cache/.lock").unlink()
    cache_logits(settings(folder, QUICK), overwrite=True)
