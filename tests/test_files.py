"""Writes are whole or absent: at every point where a process can die, a file holds the old bytes or all the new."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import Killed, killed_at

from ensemble_distill.runtime import files
from ensemble_distill.runtime.files import read_json, sha256_file, write_json, write_text, write_whole

STEPS = ["before write", "before sync", "before rename", "after rename"]


def test_the_steps_are_those_the_hook_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Path]] = []
    monkeypatch.setattr(files, "crash_point", lambda step, path: seen.append((step, path)))
    write_whole(tmp_path / "a", b"new")
    assert seen == [(step, tmp_path / "a") for step in STEPS]


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("point", range(len(STEPS)))
def test_a_crash_leaves_the_old_or_all_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None, point: int
) -> None:
    file = tmp_path / "folder" / "a"
    if old is not None:
        write_whole(file, old)
    with killed_at(point, monkeypatch, tmp_path) as happened:
        write_whole(file, [b"all ", b"the ", b"new"])
    assert happened
    if STEPS[point] == "after rename":
        assert file.read_bytes() == b"all the new"
    elif old is None:
        assert not file.exists()
    else:
        assert file.read_bytes() == old
    write_whole(file, b"once more")
    assert file.read_bytes() == b"once more"
    assert [path.name for path in file.parent.iterdir()] == ["a"], "a temporary file was left behind"


def test_there_is_no_further_crash_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(len(STEPS), monkeypatch, tmp_path) as happened:
        write_whole(tmp_path / "a", b"new")
    assert not happened


def test_content_that_fails_on_the_way_leaves_the_old(tmp_path: Path) -> None:
    def half() -> Iterator[bytes]:
        yield b"half"
        raise Killed

    write_whole(tmp_path / "a", b"old")
    with pytest.raises(Killed):
        write_whole(tmp_path / "a", half())
    assert (tmp_path / "a").read_bytes() == b"old"


def test_bytes_are_on_the_disk_before_the_name_points_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), replace(self, to))[1])
    write_whole(tmp_path / "a", b"new")
    assert order == ["sync", "rename", "sync"], "file, name, folder"


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "µ\n")
    assert (tmp_path / "a").read_bytes() == "µ\n".encode()
    record = {"z": [1, 2.5, None], "a": "µ"}
    write_json(tmp_path / "b", record)
    assert read_json(tmp_path / "b") == record
    assert list(read_json(tmp_path / "b")) == ["z", "a"], "the order given"
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b", {"x": math.nan})
    assert read_json(tmp_path / "b") == record


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
