"""Decoded pictures: to the byte what a source decodes, for every source, mode and view; and nothing else is read."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoded_helpers import PICTURES, put, read
from numpy.testing import assert_array_equal
from test_data_shards import archive
from tiny import refused

from ensemble_distill.data import decoded, decoded_blocks, open_source
from ensemble_distill.data.arrays import Arrays
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.decoded import Decoded, decodes, is_decoded
from ensemble_distill.data.decoded_blocks import RECORD, Blocks, cut, load_record, problems
from ensemble_distill.data.folds import HeldOut
from ensemble_distill.data.portions import Rule, portions
from ensemble_distill.data.renamed import Renamed
from ensemble_distill.data.rows import ViewedRows
from ensemble_distill.data.source import Array, Source
from ensemble_distill.data.subset import Subset
from ensemble_distill.data.views import kinds_of, open_view, view_names
from ensemble_distill.facts import Preprocessing
from ensemble_distill.runtime.seals import write_sealed_json

NAMES = list(PICTURES)
FACTORY = """
import numpy as np
from PIL import Image
class Rows:
    classes = ["a", "b", "c"]
    def __len__(self): return 9
    def __getitem__(self, row):
        x = np.random.default_rng(row).integers(0, 256, (4 + row, 7, 3), dtype=np.uint8)
        return (Image.fromarray(x) if row % 2 else x[..., :1 + row % 4]), row % 3
def make(): return Rows()
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two pictures."""
    monkeypatch.setattr(decoded_blocks, "BLOCK_BYTES", 500)


# --- sources ----------------------------------------------------------------------------------------------------


def folder(root: Path) -> Source:
    for at, (name, made) in enumerate(PICTURES.items()):
        (root / "photos" / "ab"[at % 2]).mkdir(parents=True, exist_ok=True)
        (root / "photos" / "ab"[at % 2] / name).write_bytes(made())
    return open_source(root / "photos")


def shards(root: Path) -> Source:
    files = [
        file
        for at, (name, made) in enumerate(PICTURES.items())
        for file in ((f"{at:02d}{Path(name).suffix}", made()), (f"{at:02d}.cls", b"1"))
    ]
    archive(root / "shards/0.tar", files[:10])
    archive(root / "shards/1.tar", files[10:])
    return open_source(root / "shards")


def table(root: Path) -> Source:
    folder(root)
    with (root / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "kind"), *((f"photos/{'ab'[at % 2]}/{name}", at % 3)
                                                        for at, name in reversed(list(enumerate(NAMES))))])  # fmt: skip
    return open_source(root / "photos.csv", columns=Columns(images="file", labels=("kind",)))


def parquet(root: Path) -> Source:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"photo": [made() for made in PICTURES.values()], "kind": [at % 3 for at in range(len(NAMES))]}
    pq.write_table(pa.table(columns), root / "photos.parquet", row_group_size=5)
    return open_source(root / "photos.parquet", columns=Columns(images="photo", labels=("kind",)))


def factory(root: Path) -> Source:
    (root / "rows.py").write_text(FACTORY)
    return open_source(f"{root}/rows.py:make")


def unlabeled(root: Path) -> Source:
    (root / "flat").mkdir()
    for name, made in PICTURES.items():
        (root / "flat" / name).write_bytes(made())
    return open_source(root / "flat")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": folder,
    "shards": shards,
    "table": table,
    "parquet": parquet,
    "factory": factory,
    "unlabeled": unlabeled,
    "subset": lambda root: Subset(folder(root), np.array([7, 2, 9, 0])),
    "portion": lambda root: portions(folder(root), Rule({"test": 0.4}))["test"],
    "held out": lambda root: HeldOut(folder(root), np.arange(len(NAMES)) % 3),
    "renamed": lambda root: Renamed(folder(root), ("b", "c", "a")),
}


def same(mine: Source, theirs: Source) -> None:
    assert len(mine) == len(theirs)
    assert (mine.digest, mine.digest_scope, mine.classes, mine.kind) == (
        theirs.digest, theirs.digest_scope, theirs.classes, theirs.kind)  # fmt: skip
    for row in range(len(theirs)):
        one, other = mine.item(row), theirs.item(row)
        assert (one.x.dtype, one.x.shape, one.x.flags.c_contiguous) == (np.uint8, other.x.shape, True)
        assert one.x.tobytes() == other.x.tobytes(), mine.name(row)
        assert not one.x.flags.writeable
        assert one.kind == other.kind == "pixels"
        assert one.y == other.y
        assert type(one.y) is type(other.y)
        assert mine.name(row) == theirs.name(row)
    if theirs.labels is None:
        assert mine.labels is None
    else:
        assert_array_equal(mine.labels, theirs.labels)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", SOURCES)
def test_rows_are_those_of_the_source_to_the_byte(tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind](tmp_path)
    assert decodes(source)
    put(tmp_path / "cache", source)
    assert len(list((tmp_path / "cache/decoded/train").glob("*.safetensors"))) > 1
    found = read(tmp_path / "cache", source)
    same(found, source)
    assert is_decoded(found)
    assert is_decoded(Subset(found, np.array([1])))
    assert not is_decoded(source)
    same(pickle.loads(pickle.dumps(found)), source)


TO = [
    Preprocessing((6, 6), (0.5,), (0.5,)),
    Preprocessing((5, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 0.9),
    Preprocessing((8, 8), (0.5,), (0.25,), "nearest", 1.0, "squash", channels=1),
    Preprocessing((7, 7), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "lanczos", 0.8, "border"),
]


@pytest.mark.parametrize("transform", [*(n for n in view_names() if "pixels" in kinds_of(n)), "affine+mixup+noise"])
def test_every_view_is_rendered_alike(tmp_path: Path, transform: str) -> None:
    """Of pictures of every mode, for members and students of every preprocessing."""
    source = folder(tmp_path)
    put(tmp_path / "cache", source)
    found, view = read(tmp_path / "cache", source), open_view(transform)
    mine, theirs = (ViewedRows(one, view, 7) for one in (found, source))
    for row in range(len(source)):
        pairs = zip(mine.inputs(row, [0, 1, 2], TO), theirs.inputs(row, [0, 1, 2], TO), strict=True)
        assert all(one.dtype == other.dtype and one.tobytes() == other.tobytes() for one, other in pairs)
        (x, labels), (other, theirs_too) = mine.labeled(row, 1, TO[1]), theirs.labeled(row, 1, TO[1])
        assert x.tobytes() == other.tobytes()
        assert labels == theirs_too


def test_what_is_decoded_already_is_not_stored(tmp_path: Path) -> None:
    assert not decodes(Arrays(np.zeros((3, 4, 4, 3), np.uint8), None, "pixels"))
    assert not decodes(Subset(Arrays(np.zeros((3, 4, 4, 3), np.uint8), None, "pixels"), np.array([1])))
    assert not decodes(Arrays(np.zeros((3, 4), np.float32), None, "features"))


def _of_rows(source: Source, rows: list[int]) -> list[bytes]:
    return [source.item(row).x.tobytes() for row in rows]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_map_it_for_themselves(tmp_path: Path, method: str) -> None:
    source = folder(tmp_path)
    put(tmp_path / "cache", source)
    found, rows = read(tmp_path / "cache", source), [3, 11, 0, 7]
    found.item(0)  # mapped here before
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_of_rows, (found, rows)) == _of_rows(source, rows)


def test_few_blocks_are_mapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "OPEN_MAPS", 2)
    source = folder(tmp_path)
    put(tmp_path / "cache", source)
    found = read(tmp_path / "cache", source)
    for row in [*range(len(source)), 0, 11, 5]:
        assert found.item(row).x.tobytes() == source.item(row).x.tobytes()
        assert len(found.pictures._maps) <= 2


def test_blocks_cover_all_rows_once() -> None:
    for rows, largest in itertools.product((1, 7, 1000), (1, 99, 500, 10**9)):
        whole = cut(rows, largest)
        assert [row for block in whole for row in block] == list(range(rows))
        assert all(len(block) * largest <= 500 or len(block) == 1 for block in whole)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Source]:
    source = folder(tmp_path)
    put(tmp_path / "cache", source)
    return tmp_path / "cache", source


def blocks_in(cache: Path) -> list[Path]:
    return sorted((cache / "decoded/train").glob("*.safetensors"))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def exchanged(path: Path) -> None:
    other = blocks_in(path.parents[2])[-1]
    path.write_bytes(other.read_bytes())


DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "flipped": (flipped, ("its sha256 is", f"and {RECORD} says")),
    "truncated": (truncated, ("bytes, and",)),
    "exchanged": (exchanged, (f"and {RECORD} says",)),
    "empty": (lambda path: path.write_bytes(b""), ("it has 0 bytes, and",)),
    "gone": (lambda path: path.unlink(), ("No such file",)),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path))[0], ("it is not a file, but a pipe",)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_named_and_its_remedy_works(made: tuple[Path, Source], damage: str) -> None:
    cache, source = made
    path = blocks_in(cache)[0]
    whole = path.read_bytes()
    change, said = DAMAGE[damage]
    change(path)
    with refused(str(path), *said, "Delete that file and run edistill cache-logits"):
        read(cache, source)
    assert len(problems(cache)) == 1
    assert str(path) in problems(cache)[0]
    path.unlink(missing_ok=True)
    put(cache, source)
    assert path.read_bytes() == whole
    same(read(cache, source), source)
    assert problems(cache) == []


def test_large_stores_are_opened_by_their_sizes_and_verified_when_asked(
    made: tuple[Path, Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "VERIFIED", 0)
    cache, source = made
    flipped(blocks_in(cache)[0])
    read(cache, source)
    assert "has sha256" in problems(cache)[0]
    truncated(blocks_in(cache)[1])
    with refused("bytes, and"):
        read(cache, source)


@pytest.mark.parametrize("edit", ["count", "sides", "negative", "overflow"])
def test_shapes_that_are_not_those_of_the_pixels_are_refused(
    made: tuple[Path, Source], edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody compares checksums, since there is too much."""
    from safetensors.numpy import load, save

    monkeypatch.setattr(decoded, "VERIFIED", 0)
    cache, source = made
    path = blocks_in(cache)[0]
    tensors = load(path.read_bytes())
    shapes = tensors["shapes"].copy()
    if edit == "count":
        shapes = shapes[:-1]
    elif edit == "sides":
        shapes[0] += 1
    else:
        shapes[0] = [-6, -6, 3] if edit == "negative" else [2**31 - 1] * 3
    path.write_bytes(save({"shapes": shapes, "pixels": tensors["pixels"]}))
    record = load_record(cache, "train")
    assert record is not None
    told = asdict(record)
    told["blocks"] = [*told["blocks"]]
    told["blocks"][0] = {**told["blocks"][0], "bytes": path.stat().st_size}
    write_sealed_json(cache / "decoded/train" / RECORD, told)
    with refused(str(path), "pictures", "Delete that file"):
        read(cache, source)


def test_other_data_is_refused_with_both_digests(made: tuple[Path, Source], tmp_path: Path) -> None:
    cache, source = made
    shutil.copy(tmp_path / "photos/a/rgb.png", tmp_path / "photos/a/one-more.png")
    now = open_source(tmp_path / "photos")
    with refused("holds pictures of data", source.digest[:12], now.digest[:12], f"({len(source)} rows)", "data.train",
                 f"({len(now)} rows)", "run edistill cache-logits --overwrite"):  # fmt: skip
        read(cache, now)
    shutil.rmtree(cache / "decoded/train")
    put(cache, now)
    same(read(cache, now), now)


def test_a_block_of_other_data_is_none(made: tuple[Path, Source]) -> None:
    cache, source = made
    first = cut(len(source), 250)[0]
    assert Blocks(cache, "train", source.digest).is_whole(first)
    assert not Blocks(cache, "train", "0" * 64).is_whole(first)
    flipped(blocks_in(cache)[0])
    assert not Blocks(cache, "train", source.digest).is_whole(first)


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "another format": (lambda told: {**told, "format": 9}, "has format 9, and this edistill reads format 1"),
    "no blocks": (lambda told: {**told, "blocks": []}, "its blocks are of rows"),
    "a row that no block has": (lambda told: {**told, "rows": told["rows"] + 1}, "its blocks are of rows"),
    "blocks that overlap": (lambda told: {**told, "blocks": [told["blocks"][0]] * 2}, "its blocks are of rows"),
    "a name as sha256": (
        lambda told: {**told, "blocks": [{**told["blocks"][0], "sha256": "../x"}, *told["blocks"][1:]]},
        "sha256",
    ),
    "rows below 0": (lambda told: {**told, "rows": -1}, "rows is -1"),
    "no digest": (lambda told: {key: value for key, value in told.items() if key != "digest"}, "digest is missing"),
}


@pytest.mark.parametrize("odd", RECORDS)
def test_a_record_that_is_odd_is_refused(made: tuple[Path, Source], odd: str) -> None:
    cache, source = made
    path = cache / "decoded/train" / RECORD
    told = json.loads(path.read_text())
    told.pop("sha256")
    change, said = RECORDS[odd]
    write_sealed_json(path, change(told))
    with refused(str(path), said, f"Delete {cache}/decoded/train"):
        read(cache, source)
    assert str(path) in problems(cache)[0]


def test_a_record_that_is_edited_or_torn_is_refused(made: tuple[Path, Source]) -> None:
    cache, source = made
    path = cache / "decoded/train" / RECORD
    whole = path.read_bytes()
    told = json.loads(whole)
    unsealed = json.dumps({key: value for key, value in told.items() if key != "sha256"}).encode()
    for content in (whole[:-9], whole.replace(b'"rows": 12', b'"rows": 13'), unsealed, b"[]", b""):
        assert content != whole
        path.write_bytes(content)
        with refused(f"{path} is damaged", "Delete"):
            read(cache, source)
    path.write_bytes(whole)
    same(read(cache, source), source)


def test_a_file_that_changes_while_it_is_read_ends_in_a_message(made: tuple[Path, Source]) -> None:
    """And not in a signal, as reading beyond the end of what is mapped would."""
    cache, source = made
    found = read(cache, source)
    found.item(0)
    os.truncate(blocks_in(cache)[0], 10)
    with refused(str(blocks_in(cache)[0]), "changed while it was read"):
        found.item(0)


def test_an_array_of_the_rows_is_a_copy(made: tuple[Path, Source]) -> None:
    cache, source = made
    found: Array = read(cache, source).pictures.read(0)
    found[:] = 0
    assert isinstance(read(cache, source), Decoded)
    assert read(cache, source).item(0).x.any()
