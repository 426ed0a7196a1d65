"""Tar shards: samples grouped as WebDataset groups them, read at their places; what no sound archive has is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from tiny import refused

from ensemble_distill.data import open_source
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.memo import Memo
from ensemble_distill.data.tar_index import files_in
from ensemble_distill.errors import EdistillError
from ensemble_distill.workflows.inspect import inspect

ROWS, SHARDS = 17, 3
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (ROWS, 6, 5, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 3, ROWS)
NAMES = ("cat", "dog", "cow")
KEYS = [f"s{row:04d}" for row in range(ROWS)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def sample(row: int, **more: bytes | None) -> list[tuple[str, bytes]]:
    label = int(LABELS[row])
    said = json.dumps({"kind": NAMES[label], "length": row / 2, "deep": {"a": 1}}).encode()
    files = {"cls": f"{label}\n".encode(), "json": said, "png": png(PIXELS[row]), **more}
    return [(f"{KEYS[row]}.{ending}", content) for ending, content in files.items() if content is not None]


def archive(path: Path, files: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def written(folder: Path, form: int = tarfile.PAX_FORMAT, **more: bytes | None) -> Path:
    for at, rows in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        archive(folder / f"{at:03d}.tar", [file for row in rows for file in sample(row, **more)], form)
    return folder


def shown(source: Any) -> np.ndarray:
    return np.stack([source.item(row).x for row in range(len(source))])


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_folder_a_pattern_and_one_shard(tmp_path: Path) -> None:
    folder = written(tmp_path / "train")
    for source in (open_source(folder), open_source(f"{folder}/{{000..002}}.tar")):
        assert (source.kind, len(source), source.name(16)) == ("pixels", ROWS, "s0016.png")
        assert_array_equal(shown(source), PIXELS)
        assert_array_equal(source.labels, LABELS)
        assert source.item(4).y == LABELS[4]
    assert len(open_source(folder / "001.tar")) == 6
    assert len(open_source(f"{folder}/{{1..2}}.tar".replace("{1..2}", "00{1..2}"))) == 11


def test_shards_of_a_folder_are_in_natural_order_as_a_pattern_counts(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        archive(tmp_path / f"train/s-{number}.tar", sample(number))
    source = open_source(tmp_path / "train")
    assert [source.name(row) for row in range(3)] == ["s0001.png", "s0002.png", "s0010.png"]
    for number in range(3, 10):
        archive(tmp_path / f"train/s-{number}.tar", sample(number))
    assert open_source(tmp_path / "train").digest == open_source(f"{tmp_path}/train/s-{{1..10}}.tar").digest


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_files_lie_where_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    long = "folder/" * 14 + "n" * (20 if form == tarfile.USTAR_FORMAT else 200) + ".é.png"
    files = [("./a.b/c.png", b"x" * 700), (long, b"y" * 512), ("e.cls", b""), ("f.cls", b"1")]
    path = archive(tmp_path / "a.tar", files, form)
    with tarfile.open(path) as tar:
        wanted = [(one.name, one.offset_data, one.size) for one in tar.getmembers()]
    assert [tuple(one) for one in files_in(path)] == wanted
    assert [one.name for one in files_in(path)] == [name for name, _ in files]


def test_labels_of_every_kind(tmp_path: Path) -> None:
    folder = written(tmp_path / "train")
    kinds = open_source(folder, columns=Columns(images="png", labels=("json.kind",), classes=NAMES[::-1]))
    assert_array_equal(kinds.labels, 2 - LABELS)
    assert kinds.classes == NAMES[::-1]
    named = open_source(folder, columns=Columns(images="png", labels=("cls",), classes=("0", "1", "2")))
    assert_array_equal(named.labels, LABELS)
    lengths = open_source(folder, "regression", columns=Columns(images="png", labels=("json.length",)))
    assert_array_equal(lengths.labels, np.arange(ROWS, dtype=np.float32) / 2)
    unlabeled = open_source(folder, columns=Columns(images="png"))
    assert (unlabeled.labels, unlabeled.remarks) == (None, ())
    several = written(tmp_path / "several", wet=b"1", far=b"0")
    both = open_source(several, "multi-label", columns=Columns(images="png", labels=("wet", "far")))
    assert_array_equal(both.labels, [[1, 0]] * ROWS)
    loud = open_source(folder, columns=Columns(images="PNG", labels=("CLS",)))
    assert_array_equal(loud.labels, LABELS)
    none = open_source(written(tmp_path / "none", cls=None))
    assert none.labels is None
    assert 'labels = ["json.KEY"]' in none.remarks[0]


def test_a_shuffled_epoch_reads_each_picture_once_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(written(tmp_path / "train"))
    source._memo = Memo(ROWS, limit=0)  # type: ignore[attr-defined]  # as of data that is larger
    read: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    order = np.random.default_rng(1).permutation(ROWS)
    for row in order:
        assert_array_equal(source.item(row).x, PIXELS[row])
    assert read == [len(png(PIXELS[row])) for row in order]


def test_a_process_is_sent_places_alone(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "train"))
    again = pickle.loads(pickle.dumps(source))
    assert_array_equal(again.item(9).x, PIXELS[9])
    assert again.digest == source.digest


def test_the_digest_is_of_rows_and_not_of_shards(tmp_path: Path) -> None:
    first = open_source(written(tmp_path / "a"))
    files = [file for row in range(ROWS) for file in sample(row)]
    assert open_source(archive(tmp_path / "one.tar", files, tarfile.GNU_FORMAT)).digest == first.digest
    files[2] = ("s0000.png", png(PIXELS[1]))
    assert open_source(archive(tmp_path / "two.tar", files)).digest != first.digest
    assert open_source(written(tmp_path / "c"), columns=Columns(images="png")).digest != first.digest


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    files = [("README", b"x"), (".hidden.png", b"x"), ("__MACOSX.png", b"x"), ("a/b.c/s1.PNG", png(PIXELS[0]))]
    source = open_source(archive(tmp_path / "a.tar", files))
    assert [source.name(row) for row in range(len(source))] == ["a/b.c/s1.PNG"]


def test_folders_of_pictures_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a/cat").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "a/cat/1.png")
    archive(tmp_path / "a/all.tar", sample(0))
    assert open_source(tmp_path / "a").classes == ("cat",)
    written(tmp_path / "data/train")
    written(tmp_path / "data/test")
    assert {name: one["rows"] for name, one in inspect(tmp_path / "data")["data"].items()} == {
        "train": ROWS,
        "test": ROWS,
    }
    assert inspect(tmp_path / "data/train")["rows"] == ROWS


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([*sample(0), *sample(1), *sample(0)], ("s0000", "two places")),
        ([*sample(0), ("s0000.png", b"")], ("s0000.png", "twice")),
        ([*sample(0), *sample(1, png=None)], ("s0001", "no picture", "cls, json")),
        ([*sample(0, jpg=b"x")], ("s0000", "2 pictures", "data.columns.images")),
        ([*sample(0), *sample(1, cls=None)], ("s0001", "no .cls")),
        ([*sample(0, cls=None), *sample(1)], ("s0001", "has a label, and the first one has none")),
        ([*sample(0, cls=b"\xff")], ("s0000.cls", "UTF-8")),
        ([*sample(0, cls=b"cat")], ("column cls is 'cat' at row 0", "data.columns.classes")),
        ([*sample(0, cls=b"")], ("column cls is '' at row 0",)),
        ([*sample(0, cls=b"1" * (2 << 20))], ("s0000.cls", "2,097,152 bytes")),
        ([("README", b"x")], ("holds no samples",)),
        ([], ("holds no samples",)),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, files: list[tuple[str, bytes]], words: Sequence[str]) -> None:
    with refused("a.tar", *words):
        open_source(archive(tmp_path / "a.tar", files))


def test_a_label_in_json_that_the_first_sample_lacks(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", [*sample(0, json=None), *sample(1)])
    with refused("a.tar", "s0001", "has a label, and the first one has none"):
        open_source(path, columns=Columns(images="png", labels=("json.kind",), classes=NAMES))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(images="jpg"), ("s0000", "no picture", "cls, json, png", "data.columns.images = 'jpg'")),
        (Columns(images="png", labels=("json.none",)), ("s0000.json", "no 'none'", "kind, length, deep")),
        (Columns(images="png", labels=("json.deep",)), ("s0000.json", '{"a": 1}')),
        (Columns(images="png", labels=("cls", "none")), ("s0000", "no .none")),
        (Columns(("age",)), ("age", "data.columns.images")),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, columns: Columns, words: Sequence[str]) -> None:
    with refused(*words):
        open_source(written(tmp_path / "train"), columns=columns)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("s0000.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with refused("a.tar", "'s0000.png'", "link" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "no file"):
        open_source(tmp_path / "a.tar")


def test_truncated_and_lying_archives_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", [file for row in range(3) for file in sample(row)], tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    last = [one.offset + -(-one.size // 512) * 512 for one in files_in(path)][-1]
    cut = {"no end": whole[:last], "in a picture": whole[: last - 600], "in a header": whole[:700], "empty": b""}
    for told, content in cut.items():
        path.write_bytes(content)
        with pytest.raises(EdistillError, match=r"a\.tar .*Copy it again"):
            open_source(path)
        assert told
    for size in (b"77777777777\0", b"\x80" + b"\xff" * 11):  # in octal, and base 256
        header = bytearray(whole[:512])
        header[124:136] = size
        header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
        path.write_bytes(bytes(header) + whole[512:])
        with refused("a.tar says that 's0000.cls' has", f"it ends at {len(whole):,}"):
            open_source(path)
    for content in (b"x" * 2000, b"PK\x03\x04" + whole, bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(content)
        with refused("a.tar is not a tar archive, or damaged at byte 0"):
            open_source(path)


def test_no_byte_of_an_archive_crashes_the_reader_or_gives_another_row(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", [(f"{'n' * 150}{row}.png", png(PIXELS[row])) for row in range(3)])
    whole, sound = path.read_bytes(), open_source(path)
    wanted, names = shown(sound), [sound.name(row) for row in range(3)]
    found: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        at = rng.integers(0, 3) * 2048 + rng.integers(0, 1536)  # mostly headers, of pax too
        broken[at] = rng.integers(0, 256)
        header = at // 512 * 512
        broken[header + 148 : header + 156] = b"%06o\0 " % (
            sum(broken[header : header + 512]) - sum(broken[header + 148 : header + 156]) + 8 * 32
        )
        path.write_bytes(broken)
        try:
            source = open_source(path)
            read = shown(source)
        except EdistillError as error:
            assert "a.tar" in str(error)  # noqa: PT017
            found["refused"] += 1
            continue
        told = [source.name(row) for row in range(len(source))]
        kept = [row for row in range(3) if any((wanted[row] == one).all() for one in read)]
        assert_array_equal(read, wanted[kept], f"byte {at} made other pixels, or another order, without a word")
        found["fewer" if len(kept) < 3 else "alike" if told == names else "renamed"] += 1
    # the names of users and dates say nothing of a row, a name is what the archive says, and no picture no row
    assert sum(found.values()) == 200
    assert found["refused"] > 2
    assert min(found["alike"], found["renamed"]) > 20
    assert found["fewer"] < 5


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    folder = written(tmp_path / "train")
    with refused("003.tar", "nor 6 others"):
        open_source(f"{folder}/{{000..009}}.tar")
    with refused("from 9 to 1"):
        open_source(f"{folder}/{{9..1}}.tar")
    with refused("from 0 to 999999999"):
        open_source(f"{folder}/{{0..999999999}}.tar")
    with refused("names more than 100,000 files"):  # each of them within bounds, and 10,000,000,000 together
        open_source(f"{folder}/{{0..99999}}-{{0..99999}}.tar")
    (folder / "a.tar.gz").write_bytes(b"")
    with refused("a.tar.gz is packed", "Unpack"):
        open_source(folder / "a.tar.gz")


def test_a_picture_that_does_not_decode_is_refused_by_row_and_name(tmp_path: Path) -> None:
    files = [*sample(0), *sample(1, png=b"no picture")]
    source = open_source(archive(tmp_path / "a.tar", files))
    assert_array_equal(source.item(0).x, PIXELS[0])
    with refused("a.tar: s0001.png (row 1) does not decode: it is not a picture of a format that Pillow knows"):
        source.item(1)
    archive(tmp_path / "a.tar", [])
    source = open_source(archive(tmp_path / "b.tar", sample(0)))
    (tmp_path / "b.tar").write_bytes(b"")
    with refused("b.tar ends within s0000.png"):
        source.item(0)
