"""Notes of tar shards beside the cache: they save reading headers, and are passed over where anything is odd."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from test_data_shards import LABELS, PIXELS, ROWS, SHARDS, archive, png, sample, shown, written
from tiny import make_folder, settings

from ensemble_distill.data import notes, open_source, shard_rows
from ensemble_distill.data.columns import Columns
from ensemble_distill.data.notes import keep_notes
from ensemble_distill.data.tar_index import files_in
from ensemble_distill.errors import EdistillError
from ensemble_distill.runtime.progress import Silent
from ensemble_distill.workflows.cache_logits import cache_logits
from ensemble_distill.workspace import Workspace


@pytest.fixture(autouse=True)
def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose headers are read; and files that were just written count as settled."""
    found: list[str] = []

    def counted(path: Path) -> Any:
        found.append(path.name)
        return files_in(path)

    monkeypatch.setattr(shard_rows, "files_in", counted)
    monkeypatch.setattr(notes, "SETTLED", 0)
    return found


def kept(tmp_path: Path, **asked: Any) -> Any:
    """A source of which a note is kept in `cache/notes`."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    source = open_source(tmp_path / "train", notes=tmp_path / "cache/notes", **asked)
    keep_notes([source], tmp_path / "cache")
    return source


def note_in(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache/notes").iterdir()
    return found


def test_what_is_kept_is_not_read_again(tmp_path: Path, walked: list[str]) -> None:
    written(tmp_path / "train")
    first = kept(tmp_path)
    assert len(walked) == SHARDS
    walked.clear()
    again = open_source(tmp_path / "train", notes=tmp_path / "cache/notes")
    assert walked == []
    assert_array_equal(shown(again), PIXELS)
    assert_array_equal(again.labels, LABELS)  # type: ignore[arg-type]
    assert (again.digest, again.name(3)) == (first.digest, first.name(3))
    assert_array_equal(pickle.loads(pickle.dumps(again)).item(2).x, PIXELS[2])


def test_other_columns_are_another_note(tmp_path: Path, walked: list[str]) -> None:
    written(tmp_path / "train")
    kept(tmp_path)
    walked.clear()
    declared = Columns(images="png", labels=("json.length",))
    for reads in (SHARDS, 0):
        found = kept(tmp_path, task="regression", columns=declared)
        assert len(walked) == reads
        walked.clear()
        assert_array_equal(found.labels, np.arange(ROWS, dtype=np.float32) / 2)
    assert len(list((tmp_path / "cache/notes").iterdir())) == 2


def test_rows_without_labels_and_their_remark(tmp_path: Path, walked: list[str]) -> None:
    written(tmp_path / "train", cls=None)
    first = kept(tmp_path)
    walked.clear()
    again = open_source(tmp_path / "train", notes=tmp_path / "cache/notes")
    assert walked == []
    assert again.labels is None
    assert again.remarks == first.remarks != ()


def other_content(shard: Path) -> None:
    """As long, with pictures in other places, and with the time of before."""
    before, size = shard.stat(), shard.stat().st_size
    archive(shard, [file for row in reversed(range(6)) for file in sample(row)])
    os.truncate(shard, size)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_place(shard: Path) -> None:
    before = shard.stat()
    content = bytearray(shard.read_bytes())
    content[0:5] = b"s9999"
    content[148:156] = b"%06o\0 " % (sum(content[:512]) - sum(content[148:156]) + 8 * 32)
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(shard: Path) -> None:
    archive(shard.with_name("new"), [*sample(0, png=png(PIXELS[9]))])
    shard.with_name("new").replace(shard)


@pytest.mark.parametrize("change", [other_content, in_place, replaced])
def test_a_shard_that_changed_is_read_again(tmp_path: Path, walked: list[str], change: Callable[[Path], None]) -> None:
    written(tmp_path / "train")
    kept(tmp_path)
    change(tmp_path / "train/000.tar")
    walked.clear()
    found = _told(lambda: open_source(tmp_path / "train", notes=tmp_path / "cache/notes"))
    assert walked
    assert found == _told(lambda: open_source(tmp_path / "train"))


def _told(opened: Callable[[], Any]) -> tuple[str, ...]:
    try:
        return opened().names
    except EdistillError as error:
        return (str(error),)


def test_a_shard_more_or_less_is_told(tmp_path: Path, walked: list[str]) -> None:
    written(tmp_path / "train")
    kept(tmp_path)
    archive(tmp_path / "train/003.tar", [("s9.png", png(PIXELS[0])), ("s9.cls", b"1")])
    assert len(kept(tmp_path)) == ROWS + 1
    (tmp_path / "train/003.tar").unlink()
    walked.clear()
    assert len(kept(tmp_path)) == ROWS
    assert walked == []


def test_files_that_were_just_written_are_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another change within the same tick of the file system's clock would not be seen."""
    written(tmp_path / "train")
    monkeypatch.setattr(notes, "SETTLED", 10**12)
    kept(tmp_path)
    assert not (tmp_path / "cache/notes").exists()


def sealed(record: Any) -> bytes:
    content = json.dumps(record).encode()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


ODD: dict[str, Callable[[Any], Any]] = {
    "a place outside of the shard": lambda record: {**record, "offsets": [10**9, *record["offsets"][1:]]},
    "a place before it": lambda record: {**record, "offsets": [-5, *record["offsets"][1:]]},
    "a negative size": lambda record: {**record, "sizes": [-1, *record["sizes"][1:]]},
    "places that are texts": lambda record: {**record, "offsets": ["0"] * ROWS},
    "a row more": lambda record: {**record, "names": [*record["names"], "x.png"]},
    "labels of fewer rows": lambda record: {**record, "texts": {"cls": ["0"]}},
    "a shard that there is none of": lambda record: {**record, "at": [99] * ROWS},
    "numbers of shards that are none": lambda record: {**record, "at": [0.5] * ROWS},
    "names that are none": lambda record: {**record, "names": [5] * ROWS},
    "labels that are tables": lambda record: {**record, "texts": {"cls": [{}] * ROWS}},
    "no labels at all": lambda record: {**record, "texts": {}},
    "another format": lambda record: {**record, "format": 1},
    "no table": lambda record: [record],
    "a key less": lambda record: {key: value for key, value in record.items() if key != "at"},
}


@pytest.mark.parametrize("odd", ODD)
def test_a_note_that_is_odd_is_passed_over(tmp_path: Path, walked: list[str], odd: str) -> None:
    written(tmp_path / "train")
    kept(tmp_path)
    note = note_in(tmp_path)
    record = json.loads(note.read_bytes().partition(b"\n")[2])
    note.write_bytes(sealed(ODD[odd](record)))
    walked.clear()
    source = kept(tmp_path)
    assert len(walked) == SHARDS
    assert_array_equal(shown(source), PIXELS)
    assert_array_equal(source.labels, LABELS)
    walked.clear()
    kept(tmp_path)
    assert walked == [], "it was written again"


def test_a_note_that_is_damaged_is_passed_over(tmp_path: Path, walked: list[str]) -> None:
    written(tmp_path / "train")
    kept(tmp_path)
    note = note_in(tmp_path)
    whole = note.read_bytes()
    for content in (b"", whole[:-9], whole.replace(b"s0003.png", b"s0004.png"), b"\xff" * 99, b"[" * 10**5):
        note.write_bytes(content)
        walked.clear()
        assert open_source(tmp_path / "train", notes=tmp_path / "cache/notes").name(3) == "s0003.png"
        assert len(walked) == SHARDS


def test_a_cache_that_cannot_be_written_is_no_mistake(tmp_path: Path) -> None:
    written(tmp_path / "train")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/notes").write_text("a file where a folder would be")
    assert len(kept(tmp_path)) == ROWS


def test_the_second_command_reads_no_headers(tmp_path: Path, walked: list[str]) -> None:
    folder = make_folder(tmp_path / "tiny")
    for at, rows in enumerate(np.array_split(np.arange(ROWS), SHARDS)):
        archive(folder / f"data/t/{at}.tar", [file for row in rows for file in sample(row)])
    given = settings(folder, {"data.train": "data/t"})
    cache_logits(given, progress=Silent())
    assert len(walked) == SHARDS
    assert len(list((folder / "cache/notes").iterdir())) == 1
    walked.clear()
    assert len(Workspace(given).source("train")) == ROWS
    assert cache_logits(given, progress=Silent()).added == 0
    assert walked == []
