"""The cache as storage: blocks, parts, records, the manifest, and reading them back."""

import json
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from tiny import contents, refused

from ensemble_distill.cache import parts, writer
from ensemble_distill.cache import records as record_files
from ensemble_distill.cache.formats import Format
from ensemble_distill.cache.manifest import NAME, Manifest
from ensemble_distill.cache.parts import Block
from ensemble_distill.cache.reader import Cache
from ensemble_distill.cache.record_key import InputKey, RecordKey, key_of
from ensemble_distill.cache.writer import Writer, blocks
from ensemble_distill.errors import EdistillError
from ensemble_distill.facts import Member, Preprocessing, Split
from ensemble_distill.runtime import open_files
from ensemble_distill.tasks.classification import Classification

ROWS, K, BATCH = 23, 5, 4
MEMBERS = tuple(
    Member(name, name[-1] * 64, preprocessing=Preprocessing((6, 6), (0.5,), (0.2,))) for name in ("m-a", "m-b")
)
KEYS = [RecordKey("ood/x", member.name, view) for member in MEMBERS for view in range(3)]
SPLIT = Split(ROWS, "d" * 64, "all", "pixels", "mixup", 3)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BLOCK_ROWS", 8)


def manifest(dtype: str = "float16") -> Manifest:
    task = Classification(tuple(f"class {k}" for k in range(K)))
    return Manifest(task, dtype, MEMBERS, {"ood/x": SPLIT}, caching={"batch_size": BATCH})


def logits(key: RecordKey) -> NDArray[np.float32]:
    """(ROWS, K), small integers, which float16 holds exactly."""
    rng = np.random.default_rng([ord(key.member[-1]), key.view])
    return rng.integers(-50, 50, (ROWS, K)).astype(np.float32)


def put(into: Writer, keys: list[RecordKey] = KEYS, cut: list[Block] | None = None) -> None:
    for block in cut or blocks(ROWS, BATCH, 1):
        encode = into.manifest.format.encode
        into.put(block, {key: encode(logits(key)[block.start : block.stop]) for key in keys})


def made(folder: Path, dtype: str = "float16") -> Path:
    whole = Writer(folder, manifest(dtype))
    put(whole)
    whole.join(KEYS, ROWS, BATCH)
    return folder


# --- blocks -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 60))
def test_blocks_cover_all_rows_in_the_batches_of_an_uncut_pass(rows: int, batch: int, block_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BLOCK_ROWS", block_rows)
        cut = blocks(rows, batch, 1)
    assert [row for block in cut for row in range(block.start, block.stop)] == list(range(rows))
    batches = [(b[0], b[-1] + 1) for block in cut for b in block.batches(batch)]
    assert batches == [(start, min(start + batch, rows)) for start in range(0, rows, batch)]
    assert all(block.stop - block.start <= max(block_rows, batch) for block in cut)


def test_wide_records_have_fewer_rows_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a block of all members fits into memory, however many classes or pixels a row has."""
    into = Writer(tmp_path, manifest())
    width = into.manifest.format.record.itemsize
    assert into.cut(KEYS[0], ROWS, BATCH) == blocks(ROWS, BATCH, 1)
    monkeypatch.setattr(writer, "BLOCK_BYTES", 5 * width)
    assert into.cut(KEYS[0], ROWS, BATCH) == [Block(start, min(start + 4, ROWS)) for start in range(0, ROWS, 4)]
    monkeypatch.setattr(writer, "BLOCK_BYTES", 1)  # a batch is never cut
    assert into.cut(KEYS[0], ROWS, BATCH) == [Block(start, min(start + 4, ROWS)) for start in range(0, ROWS, 4)]


def test_many_records_are_several_parts_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = Writer(tmp_path / "b", manifest())
    assert list(into.together(KEYS)) == [KEYS]
    monkeypatch.setattr(writer, "PART_BYTES", 2 * 8 * into.manifest.format.record.itemsize)
    assert list(into.together(KEYS)) == [KEYS[:2], KEYS[2:4], KEYS[4:]]
    for some in into.together(KEYS):
        put(into, list(some))
    into.join(KEYS, ROWS, BATCH)
    assert contents(tmp_path / "b") == contents(made(tmp_path / "a"))


# --- writing ----------------------------------------------------------------------------------------------------


def test_any_numpy_opens_a_record(tmp_path: Path) -> None:
    made(tmp_path)
    for key in KEYS:
        record = np.load(key.path(tmp_path))
        assert record.shape == (ROWS,)
        assert_array_equal(record["logits"].astype(np.float32) + record["max"][:, None], logits(key))


def test_the_order_of_the_work_is_not_in_the_bytes(tmp_path: Path) -> None:
    other = Writer(tmp_path / "b", manifest())
    for cut in blocks(ROWS, BATCH, 1)[::-1]:
        put(other, KEYS[4:], [cut])
        put(other, KEYS[:4][::-1], [cut])
    other.join(KEYS[::-1], ROWS, BATCH)
    assert contents(tmp_path / "b") == contents(made(tmp_path / "a"))


def test_parts_are_gone_once_they_are_joined_and_leftovers_with_the_next_writer(tmp_path: Path) -> None:
    made(tmp_path)
    before = contents(tmp_path)
    assert sorted(before) == [NAME, *(f"records/ood/x/{key.member}.v{key.view}.npy" for key in KEYS)]
    for name in (
        "manifest.json.part",
        "records/ood/x/m-a.v0.npy.part",
        "parts/t/0-1.safetensors.part",
        "replay/t.part",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    Writer(tmp_path, Manifest.load(tmp_path))
    assert contents(tmp_path) == before


def test_a_block_of_another_length_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 records"):
        Writer(tmp_path, manifest()).put(Block(0, 8), {KEYS[0]: manifest().format.encode(logits(KEYS[0])[:3])})


def test_each_part_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Writer(tmp_path, manifest()))
    hashed: list[int] = []
    digest = parts._digest
    monkeypatch.setattr(parts, "_digest", lambda tensors: (hashed.append(1), digest(tensors))[1])
    later = Writer(tmp_path, manifest())
    assert not any(later.missing(block, KEYS) for block in blocks(ROWS, BATCH, 1))
    later.join(KEYS, ROWS, BATCH)
    assert len(hashed) == len(blocks(ROWS, BATCH, 1)), "as many columns as there are would each hash all of them"


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-3],
    "header cut": lambda content: content[:20],
    "bit flipped": lambda content: content[:-5] + bytes([content[-5] ^ 4]) + content[-4:],
    "zeros": lambda content: bytes(len(content)),
    "no checksum": lambda content: content.replace(b'"sha256"', b'"sha255"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_part_counts_as_absent(tmp_path: Path, damage: Damage) -> None:
    put(Writer(tmp_path, manifest()))
    victim = sorted((tmp_path / "parts").rglob("*.safetensors"))[1]
    victim.write_bytes(damage(victim.read_bytes()))
    again = Writer(tmp_path, manifest())
    first, second, third = blocks(ROWS, BATCH, 1)
    assert again.missing(first, KEYS) == again.missing(third, KEYS) == ()
    assert again.missing(second, KEYS) == tuple(KEYS)
    put(again, cut=[second])
    again.join(KEYS, ROWS, BATCH)
    assert contents(tmp_path) == contents(made(tmp_path.with_name("whole")))


def test_a_part_of_one_member_is_not_anothers_by_a_flipped_letter(tmp_path: Path) -> None:
    put(Writer(tmp_path, manifest()), KEYS[:1])
    for part in (tmp_path / "parts").rglob("*.safetensors"):
        part.write_bytes(part.read_bytes().replace(b'"m-a/0"', b'"m-b/0"'))
    assert all(Writer(tmp_path, manifest()).missing(block, KEYS) == tuple(KEYS) for block in blocks(ROWS, BATCH, 1))


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in memory", "mapped"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "mapped":
        monkeypatch.setattr(record_files, "IN_MEMORY", 0)
        monkeypatch.setattr(open_files, "most_maps", lambda: 2)
    return made(tmp_path / "cache")


def test_rows_come_back_in_any_order_each_in_its_view(folder: Path) -> None:
    records = Cache(folder).open("ood/x", 3)
    rng = np.random.default_rng(0)
    rows, views = rng.integers(0, ROWS, 40), rng.integers(0, 3, 40)
    read = records.read(rows, views)
    assert read.shape == (40, 2, K)
    assert read.dtype == np.float32
    for at, (row, view) in enumerate(zip(rows, views, strict=True)):
        assert_array_equal(read[at], [logits(RecordKey("ood/x", member.name, view))[row] for member in MEMBERS])
    assert_array_equal(records.read([3, 1]), records.read(np.array([3, 1]), np.array([0, 0])))
    assert len(records) == ROWS


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_record_that_is_not_whole_is_refused_when_it_is_opened(folder: Path, damage: str) -> None:
    path = RecordKey("ood/x", "m-b", 2).path(folder)
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    with refused(str(path), "damaged", "run edistill cache-logits"):
        Cache(folder).open("ood/x", 3)
    Cache(folder).open("ood/x", 2)  # what is not asked for is not looked at


def test_a_record_of_other_rows_or_classes_is_refused(folder: Path) -> None:
    path = RecordKey("ood/x", "m-a", 0).path(folder)
    for wrong in (
        Format("dense", (K,), "float16").encode(np.zeros((ROWS - 1, K), np.float32)),
        Format("dense", (K,), "float32").encode(np.zeros((ROWS, K), np.float32)),
    ):
        np.save(path, wrong)
        with refused(str(path), "damaged"):
            Cache(folder).open("ood/x")


@pytest.mark.parametrize("held", [record_files.IN_MEMORY, 0])
def test_a_flipped_bit_is_found_before_the_first_row_is_used(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "IN_MEMORY", held)
    path = RecordKey("ood/x", "m-a", 1).path(made(tmp_path))
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with refused(str(path), "sha256", "Delete that file and run edistill cache-logits"):
        Cache(tmp_path).open("ood/x", 2)
    assert [problem.split(" has ")[0] for problem in Cache(tmp_path).verify()] == [str(path)]
    path.unlink()
    assert Cache(tmp_path).verify() == [f"{path} is missing"]


def test_few_maps_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path("/proc/self/fd")
    if not opened.is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(record_files, "IN_MEMORY", 0)
    monkeypatch.setattr(open_files, "most_maps", lambda: 2)
    made(tmp_path)
    before = len(list(opened.iterdir()))
    records = Cache(tmp_path).open("ood/x", 3)
    for view in (0, 1, 2, 1, 0):
        records.read(range(ROWS), view)
        assert len(list(opened.iterdir())) <= before + 2


def test_the_first_maps_stay_open_though_a_batch_reads_all_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "IN_MEMORY", 0)
    monkeypatch.setattr(open_files, "most_maps", lambda: 4)
    records, opened = Cache(made(tmp_path)).open("ood/x", 3), []

    def counted(*given: Any, **named: Any) -> mmap:
        opened.append(given)
        return mmap(*given, **named)

    monkeypatch.setattr(record_files.mmap, "mmap", counted)
    for _ in range(3):
        records.read(range(ROWS), np.arange(ROWS) % 3)
    assert len(opened) == 3 * (len(KEYS) - 4)


def test_a_record_that_is_cut_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files, "IN_MEMORY", 0)
    monkeypatch.setattr(open_files, "most_maps", lambda: 0)
    records = Cache(made(tmp_path)).open("ood/x", 3)
    path = RecordKey("ood/x", "m-b", 2).path(tmp_path)
    for content in (path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        with refused(str(path), "damaged", "run edistill cache-logits"):
            records.read([0], 2)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    made(tmp_path)
    with refused("holds 3 views of ood/x, and 4 are asked for", "Run edistill cache-logits"):
        Cache(tmp_path).open("ood/x", 4)
    with refused("holds 0 views of test, and 1 are asked for", "it has ood/x"):
        Cache(tmp_path).open("test")
    with refused("holds no cache", "Run edistill cache-logits first"):
        Cache(tmp_path / "nowhere")
    put(Writer(tmp_path / "half", manifest()))
    with refused("is unfinished: ood/x has no view of every member", "Run edistill cache-logits to finish it"):
        Cache(tmp_path / "half").views("ood/x")


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "file"),
    [
        (RecordKey("train", "m-a", 0), "train/m-a/0", "records/train/m-a.v0.npy"),
        (RecordKey("ood/x", "m-a", 12), "ood/x/m-a/12", "records/ood/x/m-a.v12.npy"),
        (RecordKey("train", "x", 3), "train/x/3", "records/train/x.v3.npy"),
        (InputKey("train", 1), "inputs/train/x/1", "records/inputs/train/x.v1.npy"),
    ],
)
def test_a_key_is_a_text_in_the_manifest_and_a_file(key: RecordKey | InputKey, text: str, file: str) -> None:
    assert (key.text, key.path(Path("c")), key_of(text)) == (text, Path("c") / file, key)


@pytest.mark.parametrize("text", ["", "train", "train/m", "train/m/", "train/m/-1", "train/m/01", "/m/0", "train//0"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a record"):
        key_of(text)


# --- the manifest -----------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    made(tmp_path)
    there = Manifest.load(tmp_path)
    assert there.members == MEMBERS
    assert there.splits == {"ood/x": SPLIT}
    assert there.names == ("m-a", "m-b")
    assert there.views("ood/x") == 3
    assert there.views("test") == 0
    assert set(there.records) == set(KEYS)
    content = (tmp_path / NAME).read_bytes()
    there.save(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_views_count_only_while_every_member_has_them(tmp_path: Path) -> None:
    whole = Manifest.load(made(tmp_path))
    for member, view, left in (("m-b", 2, 2), ("m-a", 1, 1), ("m-a", 0, 0)):
        whole.records.pop(RecordKey("ood/x", member, view))  # type: ignore[attr-defined]
        assert whole.views("ood/x") == left


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    made(tmp_path)
    record = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(record | {"format": 7}))
    with refused("cache format 7", "reads formats 1 to 3", "edistill cache-logits --overwrite"):
        Manifest.load(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    for content in ["", "{", "[]", "null", "7", '{"format": 1}', '{"format": 1, "task": "x"}', "\udcff"]:
        (tmp_path / NAME).write_bytes(content.encode(errors="surrogateescape"))
        with refused(str(tmp_path / NAME), "is damaged", "Restore it, or run edistill cache-logits --overwrite"):
            Manifest.load(tmp_path)


@settings(deadline=None)
@given(st.data())
def test_damage_anywhere_in_the_manifest_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.is_dir():
        made(folder)
        (folder / NAME).rename(folder / "whole")
    whole = (folder / "whole").read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 3))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / NAME).write_bytes(content)
    try:
        same = json.loads(content) == json.loads(whole)  # white space may change
    except ValueError:
        same = False
    if same:
        Manifest.load(folder)
    else:
        with pytest.raises(EdistillError):
            Manifest.load(folder)


def test_a_row_count_that_is_off_by_one_is_found(tmp_path: Path) -> None:
    """Records are read from their end, so it would shift every row by one."""
    made(tmp_path)
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text.replace(f'"rows": {ROWS}', f'"rows": {ROWS - 1}'))
    with refused("is damaged", "checksum"):
        Cache(tmp_path)
